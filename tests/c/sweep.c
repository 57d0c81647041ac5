/* What becomes of a chat when a system call fails, is short or is interrupted: sweep NAME PROTOCOL URL... */
#include "check.h"
#include "shim.h"

#include <errno.h>
#include <netdb.h>
#include <sys/wait.h>

#define COUNT(list) (sizeof list / sizeof list[0])

static const char *const calls[CALLS] = {"socket", "setsockopt", "fcntl or ioctl", "connect",     "getsockopt", "poll",
                                         "send",   "recv",       "close",          "getaddrinfo", "getrandom"};

/* ---- chats ---- */

#define LONG_MS 20000 /* for a chat: no machine is so busy, and the time that a fault takes does not pass */
#define FEW 48        /* bytes for a system call: less than a header, or an event */

/* How to chat. */
struct way {
    const char *protocol, *url, *reply, *proxy;
    const char *retries;
    int is_warm;  /* on a connection that has served, with a login that has a use left */
    int is_pull;  /* with gptalk_next() */
    size_t limit; /* how many bytes a system call takes */
};

static void set_limit(gptalk_client *client, int ms)
{
    char text[16];
    sprintf(text, "%d", ms);
    CHECK_STATUS(client, gptalk_set(client, "timeout_ms", text), GPTALK_OK);
}

static gptalk_client *client_for(const struct way *way)
{
    gptalk_client *client = client_at(way->url);
    CHECK_STATUS(client, gptalk_set(client, "protocol", way->protocol), GPTALK_OK);
    CHECK_STATUS(client, gptalk_set(client, "retries", way->retries), GPTALK_OK);
    CHECK_STATUS(client, gptalk_set(client, "proxy", way->proxy), GPTALK_OK);
    set_limit(client, LONG_MS);
    return client;
}

static int hear_login(const char *line, size_t len, void *is_there)
{
    (void)len;
    *(int *)is_there |= strstr(line, "logging in") != NULL;
    return 0;
}

/* Chats until a login has all of its uses but one left: the next chats need none. */
static void warm_up(gptalk_client *client, const struct way *way)
{
    int is_there = strcmp(way->protocol, "gptalk") != 0, i = 0;
    CHECK_STATUS(client, gptalk_on(client, "log", hear_login, &is_there), GPTALK_OK);
    do {
        CHECK(i++ < 6);
        check_chat(client, way->reply);
    } while (!is_there);
    CHECK_STATUS(client, gptalk_on(client, "log", NULL, NULL), GPTALK_OK);
}

static gptalk_status pull(gptalk_client *client, struct heard *heard)
{
    const char *text;
    size_t len;
    CHECK_STATUS(client, gptalk_start(client, HI), GPTALK_OK);
    while ((text = gptalk_next(client, &len)) != NULL)
        hear(text, len, heard);
    return gptalk_finish(client);
}

/* ---- faults ---- */

/* What may become of a chat. */
enum end {
    WELL,     /* nothing but good */
    UNOPENED, /* a connection is not opened: nothing was sent, and another try is as good as the first */
    BROKEN    /* a connection breaks */
};

struct expected {
    struct fault fault;
    enum end end;
    int is_typical; /* befalls a chat in small pieces too */
};

static const struct expected faults[] = {
    {{SOCKET, FAILS, EMFILE, 0, 0}, UNOPENED, 0},
    {{SOCKET, FAILS, ENOBUFS, 0, 0}, UNOPENED, 0},
    {{SOCKET, FAILS, EACCES, 0, 0}, UNOPENED, 0},
    {{SETSOCKOPT, FAILS, ENOMEM, 0, 0}, UNOPENED, 0},
    {{SETSOCKOPT, FAILS, EINVAL, 0, 0}, UNOPENED, 0},
    {{FCNTL, FAILS, EPERM, 0, 0}, UNOPENED, 0},
    {{CONNECT, FAILS, EINTR, 0, 0}, WELL, 0},
    {{CONNECT, FAILS, ECONNREFUSED, 0, 0}, UNOPENED, 0},
    {{CONNECT, FAILS, ENETUNREACH, 0, 0}, UNOPENED, 0},
    {{CONNECT, FAILS, ETIMEDOUT, 0, 0}, UNOPENED, 0},
    {{CONNECT, FAILS, EADDRNOTAVAIL, 0, 0}, UNOPENED, 0},
    {{CONNECT, FAILS, EAGAIN, 0, 0}, UNOPENED, 0},
    {{GETSOCKOPT, FAILS, ENOBUFS, 0, 0}, UNOPENED, 0},
    {{GETSOCKOPT, REPORTS, ECONNREFUSED, 0, 0}, UNOPENED, 0},
    {{GETSOCKOPT, REPORTS, EHOSTUNREACH, 0, 0}, UNOPENED, 0},
    {{GETSOCKOPT, REPORTS, ETIMEDOUT, 0, 0}, UNOPENED, 0},
    {{POLL, FAILS, EINTR, 0, 0}, WELL, 0},
    {{POLL, SHORT, 0, 0, 0}, WELL, 0},
    {{POLL, FAILS, ENOMEM, 0, 0}, UNOPENED, 0},
    {{SEND, FAILS, EINTR, 0, 0}, WELL, 1},
    {{SEND, FAILS, EAGAIN, 0, 0}, WELL, 0},
    {{SEND, SHORT, 0, 0, 0}, WELL, 0},
    {{SEND, FAILS, EPIPE, 0, 0}, BROKEN, 1},
    {{SEND, FAILS, ECONNRESET, 0, 0}, BROKEN, 0},
    {{SEND, FAILS, ENOBUFS, 0, 0}, BROKEN, 0},
    {{RECV, FAILS, EINTR, 0, 0}, WELL, 0},
    {{RECV, FAILS, EAGAIN, 0, 0}, WELL, 1},
    {{RECV, SHORT, 0, 0, 0}, WELL, 0},
    {{RECV, ENDS, 0, 0, 0}, BROKEN, 1},
    {{RECV, FAILS, ECONNRESET, 0, 0}, BROKEN, 1},
    {{RECV, FAILS, ETIMEDOUT, 0, 0}, BROKEN, 0},
    {{RECV, FAILS, ENOMEM, 0, 0}, BROKEN, 0},
    {{CLOSE, FAILS, EINTR, 0, 0}, WELL, 0},
    {{CLOSE, FAILS, EIO, 0, 0}, WELL, 0},
    {{GETADDRINFO, FAILS, EAI_AGAIN, 0, 0}, UNOPENED, 0},
    {{GETADDRINFO, FAILS, EAI_NONAME, 0, 0}, UNOPENED, 0},
    {{GETADDRINFO, FAILS, EAI_MEMORY, 0, 0}, UNOPENED, 0},
    {{GETADDRINFO, FAILS, EAI_SYSTEM, 0, 0}, UNOPENED, 0},
};

/* The chat in hand, for a check that fails. */
static struct {
    const struct way *way;
    struct fault fault;
    enum end end;
    int limit_ms; /* of the chat */
} now;

static void explain(gptalk_client *client, gptalk_status status, const char *what)
{
    static const char *const how[] = {"fails", "reports", "is short", "ends"};
    const char *error = gptalk_get(client, "error");
    fprintf(stderr, "%s %s, retries %s, warm %d, pull %d, limit %d: %s no. %ld%s %s (%d): %s: %s: %s\n",
            now.way->protocol, now.way->url, now.way->retries, now.way->is_warm, now.way->is_pull,
            (int)now.way->limit, calls[now.fault.call], now.fault.nth, now.fault.sticky ? " and all behind it" : "",
            how[now.fault.how], now.fault.error, what, gptalk_status_name(status), error ? error : "(no error)");
    _exit(1);
}

#define EXPLAIN(holds) ((holds) ? (void)0 : explain(client, status, #holds))

/* What holds after each chat, whatever has befallen it. */
static void check_outcome(gptalk_client *client, gptalk_status status, const struct heard *heard)
{
    const char *error = gptalk_get(client, "error"), *code = gptalk_get(client, "error_code");
    const char *text = gptalk_get(client, "text"), *reply = now.way->reply;
    EXPLAIN(text != NULL && strcmp(text, heard->text) == 0);
    EXPLAIN(gptalk_get_int(client, "text_len") == (long long)heard->len);
    EXPLAIN(gptalk_get_int(client, "pieces") == heard->pieces);
    EXPLAIN(strncmp(heard->text, reply, heard->len) == 0);
    EXPLAIN((reply[heard->len] & 0xc0) != 0x80); /* not inside a character */
    EXPLAIN(gptalk_get_int(client, "attempts") <= 1 + atoi(now.way->retries));
    EXPLAIN(gptalk_get_int(client, "duration_ms") <= now.limit_ms + LATE_MS);
    if (status == GPTALK_OK) {
        EXPLAIN(strcmp(heard->text, reply) == 0);
        EXPLAIN(error == NULL && code == NULL);
        EXPLAIN(gptalk_get_int(client, "retryable") == 0);
        return;
    }
    EXPLAIN(error != NULL);
    EXPLAIN(strstr(error, "127.0.0.1") != NULL || strstr(error, "localhost") != NULL);
    EXPLAIN(strstr(error, "panic") == NULL);
    EXPLAIN(gptalk_get_int(client, "retryable") == (heard->pieces == 0));
}

static int is_one_of(const char *word, const char *list)
{
    return word != NULL && strstr(list, word) != NULL;
}

/* Whether a call that goes on like this is no call that ends a wait. */
static int is_endless(const struct fault *fault)
{
    int waits = fault->call == POLL || fault->call == SEND || fault->call == RECV;
    return fault->sticky && waits && (fault->how == FAILS || fault->call == POLL);
}

/* What may have become of a chat that a fault has befallen. */
static void check_end(gptalk_client *client, gptalk_status status, enum end end)
{
    const char *code = gptalk_get(client, "error_code"), *url = gptalk_get(client, "url");
    long long attempts = gptalk_get_int(client, "attempts");
    int is_tried_once = strcmp(now.way->retries, "0") == 0;
    if (status == GPTALK_OK)
        return;
    switch (end) {
    case WELL:
        EXPLAIN(status == GPTALK_TIMEOUT && is_endless(&now.fault));
        break;
    case BROKEN:
        EXPLAIN(status == GPTALK_NETWORK || status == GPTALK_TRUNCATED);
        EXPLAIN(status == GPTALK_NETWORK ? is_one_of(code, "closed proxy") : code == NULL);
        /* A login is tried again, and goes well where one fault is all there is. */
        EXPLAIN(is_tried_once || now.fault.sticky || strstr(url, "/user/login") == NULL);
        break;
    case UNOPENED:
        EXPLAIN(status == GPTALK_NETWORK);
        EXPLAIN(is_one_of(code, now.fault.call == GETADDRINFO ? "dns" : "connect proxy"));
        EXPLAIN(is_tried_once ? attempts == 1 : attempts == 2 && now.fault.sticky);
    }
}

static int are_as_before(int descriptors)
{
    return entries("/proc/self/fd") == descriptors && entries("/proc/self/task") == 1;
}

/* A chat that a fault befalls; says whether it has so many calls. */
static int befall(void)
{
    int descriptors = entries("/proc/self/fd");
    gptalk_client *client = client_for(now.way);
    struct heard heard = nothing_heard();
    gptalk_status status;
    long long started;
    if (now.way->is_warm)
        warm_up(client, now.way);
    now.limit_ms = is_endless(&now.fault) ? 1000 : LONG_MS;
    set_limit(client, now.limit_ms);

    shim_limit(now.way->limit);
    shim_arm(&now.fault);
    started = now_ms();
    status = now.way->is_pull ? pull(client, &heard) : gptalk_client_chat(client, HI, hear, &heard);
    EXPLAIN(now_ms() - started <= now.limit_ms + LATE_MS);
    if (now.fault.call != CLOSE) /* what closes the connection comes at last */
        shim_disarm();
    check_outcome(client, status, &heard);
    check_end(client, status, now.end);

    heard = nothing_heard();
    set_limit(client, now.limit_ms = LONG_MS);
    status = gptalk_client_chat(client, HI, hear, &heard);
    EXPLAIN(status == GPTALK_OK && "the next chat");
    check_outcome(client, status, &heard);
    gptalk_client_free(client);
    shim_disarm();
    client = NULL;
    EXPLAIN(are_as_before(descriptors));
    return shim_count(now.fault.call) >= now.fault.nth;
}

/* Befalls the n-th call of a kind, for every n. */
static void sweep(const struct expected *expected, int sticky)
{
    int missed = 0; /* how many calls there are is the network's to say: it may be one less this time */
    now.fault = expected->fault;
    now.fault.sticky = sticky;
    now.end = expected->end;
    while (missed < 3) {
        size_t before = heap();
        now.fault.nth++;
        missed = befall() ? 0 : missed + 1;
        if (heap() > before) { /* what is kept is kept once; what leaks leaks again */
            gptalk_client *client = NULL;
            gptalk_status status = GPTALK_OK;
            before = heap();
            befall();
            EXPLAIN(heap() <= before);
        }
    }
}

static int has(const char *text, const char *part)
{
    return text != NULL && strstr(text, part) != NULL;
}

/* Sees to it that there is something to befall: a chat has its calls, and they come through the shim. */
static void check_calls(const struct way *way)
{
    int is_named = has(way->url, "localhost") || has(way->proxy, "localhost");
    gptalk_client *client = client_for(way);
    int call;
    if (way->is_warm)
        warm_up(client, way);
    shim_limit(way->limit);
    shim_arm(NULL);
    check_chat(client, way->reply);
    gptalk_client_free(client);
    shim_disarm();
    for (call = 0; call < CALLS; call++) {
        /* Random numbers are not for each chat: the first one is another promise. */
        int is_there = call == GETADDRINFO ? is_named : call != GETRANDOM;
        if (way->is_warm)
            is_there = call == POLL || call == SEND || call == RECV || call == CLOSE;
        if (is_there && shim_count(call) == 0) {
            fprintf(stderr, "%s: a chat has no %s\n", way->protocol, calls[call]);
            _exit(1);
        }
    }
}

static void sweep_all(struct way way)
{
    size_t i;
    now.way = &way;
    check_calls(&way);
    for (i = 0; i < COUNT(faults); i++) {
        if (way.limit > 0 && !faults[i].is_typical)
            continue;
        sweep(&faults[i], 0);
        if (way.limit == 0)
            sweep(&faults[i], 1);
    }
}

/* args: protocol, URL, reply, proxy or none */
static void every_call(char **args)
{
    struct way way = {args[0], args[1], args[2], args[3], "0", 0, 0, 0};
    sweep_all(way);
    way.retries = "1";
    way.is_pull = 1;
    sweep_all(way);
    if (has(way.url, "localhost")) /* once it is resolved, a name is an address */
        return;
    way.limit = FEW;
    sweep_all(way);
}

/* args: protocol, URL, reply */
static void every_call_of_a_warm_chat(char **args)
{
    struct way way = {args[0], args[1], args[2], NULL, "1", 1, 0, 0};
    sweep_all(way);
    way.limit = FEW;
    way.is_pull = 1;
    sweep_all(way);
}

/* ---- all calls at a time ---- */

/* args: protocol, URL, reply. However little a call does, and however often a signal comes, nobody notices. */
static void short_and_interrupted(char **args)
{
    static const size_t limits[] = {1, 2, 7, 0};
    struct way way = {args[0], args[1], args[2], NULL, "0", 0, 0, 0};
    size_t i, before = 0;
    int storm, turn, descriptors = entries("/proc/self/fd");
    for (turn = 0; turn < 2; turn++) {
        before = heap();
        for (i = 0; i < COUNT(limits); i++)
            for (storm = 0; storm < 2; storm++) {
                gptalk_client *client = client_for(&way);
                shim_limit(limits[i]);
                shim_storm(storm);
                shim_arm(NULL);
                check_chat(client, way.reply);
                check_chat(client, way.reply); /* on the same connection */
                CHECK(limits[i] == 0 || shim_received() / limits[i] <= (size_t)shim_count(RECV));
                CHECK(!storm || shim_count(RECV) > 1);
                gptalk_client_free(client);
                shim_disarm();
                shim_storm(0);
            }
    }
    CHECK(heap() <= before);
    CHECK(are_as_before(descriptors));
}

/* ---- splits ---- */

/* All that a chat has told, in order. */
struct told {
    size_t len;
    char text[65536];
};

static void tell(struct told *told, const char *what, const char *text)
{
    int left = (int)sizeof told->text - (int)told->len;
    int len = snprintf(told->text + told->len, left, "%s: %s\n", what, text ? text : "(NULL)");
    CHECK(len < left);
    told->len += len;
}

static int hear_text(const char *text, size_t len, void *told)
{
    CHECK_INT(strlen(text), len);
    tell(told, "text", text);
    return 0;
}

static int hear_thought(const char *text, size_t len, void *told)
{
    (void)len;
    tell(told, "thought", text);
    return 0;
}

static int hear_event(const char *text, size_t len, void *told)
{
    (void)len;
    tell(told, "event", text);
    return 0;
}

static void tell_chat(const struct way *way, struct told *told)
{
    static const char *const keys[] = {"error", "error_code", "text",  "reasoning", "message", "finish_reason",
                                       "usage", "model",      "url"};
    gptalk_client *client = client_for(way);
    size_t i;
    told->len = 0;
    CHECK_STATUS(client, gptalk_on(client, "event", hear_event, told), GPTALK_OK);
    CHECK_STATUS(client, gptalk_on(client, "reasoning", hear_thought, told), GPTALK_OK);
    shim_arm(NULL);
    tell(told, "status", gptalk_status_name(gptalk_client_chat(client, HI, hear_text, told)));
    shim_disarm();
    for (i = 0; i < COUNT(keys); i++)
        tell(told, keys[i], gptalk_get(client, keys[i]));
    gptalk_client_free(client);
}

/* args: protocol, URL of a service that always answers the same, reply. Wherever the network splits what the
 * service has sent, login and all, the same is told. */
static void every_split(char **args)
{
    static struct told whole, split;
    struct way way = {args[0], args[1], args[2], NULL, "0", 0, 0, 0};
    size_t at, limit, length;
    tell_chat(&way, &whole);
    CHECK(strstr(whole.text, "status: ok\n") != NULL && strstr(whole.text, way.reply) != NULL);
    length = shim_received();
    for (at = 1; at < length + 8; at++) {
        limit = at < length ? 0 : at - length + 1; /* at last a few bytes at a time */
        shim_split(limit ? 0 : at);
        shim_limit(limit);
        tell_chat(&way, &split);
        if (strcmp(split.text, whole.text) != 0) {
            fprintf(stderr, "split at %d of %d:\n%s\nwhole:\n%s\n", (int)at, (int)length, split.text, whole.text);
            _exit(1);
        }
        CHECK(limit || shim_was_split() || shim_received() < at); /* or the reply had ended before */
    }
}

/* ---- random numbers, of which a process wants the most at its first chat ---- */

static int first_chat_is_befallen(const struct fault *fault)
{
    int status;
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        struct heard heard = nothing_heard();
        gptalk_client *client;
        gptalk_status status;
        shim_arm(fault);
        client = client_for(now.way);
        now.fault = *fault;
        now.limit_ms = LONG_MS;
        status = gptalk_client_chat(client, HI, hear, &heard);
        shim_disarm();
        EXPLAIN(status == GPTALK_OK);
        check_outcome(client, status, &heard);
        gptalk_client_free(client);
        _exit(shim_count(GETRANDOM) >= fault->nth ? 0 : 77);
    }
    CHECK_INT(waitpid(child, &status, 0), child);
    CHECK(WIFEXITED(status) && (WEXITSTATUS(status) == 0 || WEXITSTATUS(status) == 77));
    return WEXITSTATUS(status) == 0;
}

/* args: protocol, URL, reply. The library has not been used before. */
static void first_random_numbers(char **args)
{
    struct way way = {args[0], args[1], args[2], NULL, "0", 0, 0, 0};
    static const struct fault faults[] = {
        {GETRANDOM, FAILS, EINTR, 0, 0},
        {GETRANDOM, SHORT, 0, 0, 0},
    };
    static const struct fault without[] = {
        {GETRANDOM, FAILS, ENOSYS, 1, 1}, /* an old kernel */
        {GETRANDOM, FAILS, EPERM, 1, 1},  /* a sandbox */
    };
    size_t i;
    now.way = &way;
    for (i = 0; i < COUNT(faults); i++) {
        struct fault fault = faults[i];
        while (fault.nth++, first_chat_is_befallen(&fault))
            ;
        CHECK(fault.nth > 1);
    }
    for (i = 0; i < COUNT(without); i++)
        CHECK(first_chat_is_befallen(&without[i]));
}

static const struct promise promises[] = {
    {"every_call", every_call},
    {"every_call_of_a_warm_chat", every_call_of_a_warm_chat},
    {"short_and_interrupted", short_and_interrupted},
    {"every_split", every_split},
    {"first_random_numbers", first_random_numbers},
};

int main(int argc, char **argv)
{
    return KEEP(promises);
}
