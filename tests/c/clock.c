/* What the header promises where the clock is not to be trusted: clock NAME URL...
 * The library asks for the time through this program's clock_gettime(). */
#include "check.h"

#include <errno.h>
#include <sys/syscall.h>

/* Seconds by which the date is wrong. */
static volatile long long jump;
/* The clock has failed, which the library holds for impossible: it panics. */
static volatile int broken;

int clock_gettime(clockid_t id, struct timespec *now)
{
    int result;
    if (broken) {
        errno = EINVAL;
        return -1;
    }
    result = (int)syscall(SYS_clock_gettime, id, now);
    if (id == CLOCK_REALTIME)
        now->tv_sec += jump;
    return result;
}

/* args: URL of a service that answers whatever the date */
static void jumps(char **args)
{
    gptalk_client *client = client_at(args[0]);
    check_chat(client, SAID_HI);
    check_chat(client, SAID_HI);
    jump = 2 * 60 * 60; /* beyond expires_at: a login */
    check_chat(client, SAID_HI);
    jump = -10LL * 365 * 24 * 60 * 60; /* all is still good, ten years ago */
    check_chat(client, SAID_HI);
    gptalk_client_free(client);
}

static int break_the_clock(const char *text, size_t len, void *userdata)
{
    hear(text, len, userdata);
    broken = 1;
    return 0;
}

static gptalk_status mended(gptalk_status status)
{
    broken = 0;
    return status;
}

/* args: URL of a service that is silent after its first piece, and of one that is not */
static void panics(char **args)
{
    struct heard heard = nothing_heard();
    gptalk_client *client = client_at(args[0]);

    /* In the middle of a reply: what has come stays. */
    CHECK_STATUS(client, mended(gptalk_client_chat(client, HI, break_the_clock, &heard)), GPTALK_INTERNAL);
    CHECK_TEXT(heard.text, "Hel");
    CHECK_TEXT(gptalk_get(client, "text"), "Hel");
    CHECK(strstr(gptalk_get(client, "error"), "defect") != NULL);

    /* In the pull form. */
    CHECK_STATUS(client, gptalk_start(client, HI), GPTALK_OK);
    CHECK_TEXT(gptalk_next(client, NULL), "Hel");
    broken = 1;
    CHECK_TEXT(gptalk_next(client, NULL), NULL);
    CHECK_STATUS(client, mended(gptalk_finish(client)), GPTALK_INTERNAL);

    /* At the very beginning, and of the one-liner. */
    broken = 1;
    CHECK_STATUS(client, mended(gptalk_client_chat(client, HI, NULL, NULL)), GPTALK_INTERNAL);
    CHECK_STATUS(NULL, gptalk_set(NULL, "base_url", args[1]), GPTALK_OK);
    broken = 1;
    CHECK_STATUS(NULL, mended(gptalk_chat(HI, NULL, NULL)), GPTALK_INTERNAL);
    CHECK(gptalk_get(NULL, "error") != NULL);

    /* No lock is poisoned, no turn taken, no login lost. */
    CHECK_STATUS(client, gptalk_set(client, "base_url", args[1]), GPTALK_OK);
    check_chat(client, SAID_HI);
    CHECK_STATUS(NULL, gptalk_chat(HI, NULL, NULL), GPTALK_OK);
    CHECK_INT(gptalk_cancel(client), 0);
    CHECK_INT(gptalk_cancel(NULL), 0);
    gptalk_client_free(client);
}

static const struct promise promises[] = {
    {"jumps", jumps},
    {"panics", panics},
};

int main(int argc, char **argv)
{
    return KEEP(promises);
}
