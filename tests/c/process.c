/* What the header promises of the process that the library lives in: process NAME URL... */
#include "check.h"

#include <errno.h>
#include <fcntl.h>
#include <locale.h>
#include <semaphore.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/time.h>
#include <sys/wait.h>

#define COUNT(list) (sizeof list / sizeof list[0])

static int threads(void)
{
    return entries("/proc/self/task");
}

/* ---- nothing but the chat ---- */

static void chat_alone(char **args)
{
    gptalk_client *client = client_at(args[0]);
    check_chat(client, SAID_HI);
    CHECK_STATUS(NULL, gptalk_set(NULL, "base_url", args[0]), GPTALK_OK);
    CHECK_STATUS(NULL, gptalk_chat(HI, NULL, NULL), GPTALK_OK);
    gptalk_client_free(client);
}

/* What chat_alone() is compared to. */
static void nothing(char **args)
{
    (void)args;
}

static int count_threads(const char *text, size_t len, void *userdata)
{
    (void)text;
    (void)len;
    (void)userdata;
    CHECK_INT(threads(), 1);
    return 0;
}

/* args: URL of a slow service by address, and by name */
static void no_thread(char **args)
{
    int i;
    CHECK_INT(threads(), 1);
    for (i = 0; i < 2; i++) {
        gptalk_client *client = client_at(args[i]);
        CHECK_STATUS(client, gptalk_set(client, "timeout_ms", "60000"), GPTALK_OK);
        CHECK_STATUS(client, gptalk_on(client, "tick", count_threads, NULL), GPTALK_OK);
        CHECK_STATUS(client, gptalk_on(client, "log", count_threads, NULL), GPTALK_OK);
        CHECK_STATUS(client, gptalk_client_chat(client, HI, count_threads, NULL), GPTALK_OK);
        gptalk_client_free(client);
        CHECK_INT(threads(), 1);
    }
}

static void no_more_processes(char **args)
{
    struct rlimit one = {1, 1};
    CHECK_INT(setrlimit(RLIMIT_NPROC, &one), 0);
    chat_alone(args);
}

/* In place of the system's: the library is to look once, and never while a host changes it. */
static int looks;

char *getenv(const char *name)
{
    extern char **environ;
    const size_t len = strlen(name);
    char **variable;
    looks++;
    for (variable = environ; *variable != NULL; variable++)
        if (strncmp(*variable, name, len) == 0 && (*variable)[len] == '=')
            return *variable + len + 1;
    return NULL;
}

/* args: URL, URL of a service that fails, https URL */
static void environment_once(char **args)
{
    gptalk_client *bad, *secure;
    chat_alone(args);
    CHECK(looks > 0);
    looks = 0;
    chat_alone(args);
    bad = client_at(args[1]);
    CHECK_STATUS(bad, gptalk_client_chat(bad, HI, NULL, NULL), GPTALK_SERVER);
    gptalk_client_free(bad);
    secure = client_at(args[2]);
    CHECK_STATUS(secure, gptalk_client_chat(secure, HI, NULL, NULL), GPTALK_TLS);
    gptalk_client_free(secure);
    CHECK_INT(looks, 0);
}

/* ---- signals ---- */

struct signals {
    struct sigaction actions[64];
    sigset_t mask;
};

static void look(struct signals *signals)
{
    int i;
    memset(signals, 0, sizeof *signals);
    for (i = 1; i < 64; i++)
        sigaction(i, NULL, &signals->actions[i]); /* two of them are glibc's own and stay zero */
    pthread_sigmask(SIG_SETMASK, NULL, &signals->mask);
}

static void check_signals(const struct signals *before)
{
    struct signals after;
    int i;
    look(&after);
    for (i = 1; i < 64; i++) {
        CHECK(before->actions[i].sa_handler == after.actions[i].sa_handler);
        CHECK_INT(before->actions[i].sa_flags, after.actions[i].sa_flags);
        CHECK_INT(sigismember(&before->mask, i), sigismember(&after.mask, i));
    }
    CHECK(after.actions[SIGPIPE].sa_handler == SIG_DFL);
}

static int check_signals_in_callback(const char *text, size_t len, void *before)
{
    (void)text;
    (void)len;
    check_signals(before);
    return 0;
}

static void signals_untouched(char **args)
{
    struct signals before;
    gptalk_client *client;
    signal(SIGPIPE, SIG_DFL); /* whatever the parent has left */
    look(&before);
    client = client_at(args[0]);
    check_signals(&before);
    CHECK_STATUS(client, gptalk_on(client, "tick", check_signals_in_callback, &before), GPTALK_OK);
    CHECK_STATUS(client, gptalk_client_chat(client, HI, check_signals_in_callback, &before), GPTALK_OK);
    gptalk_client_free(client);
    check_signals(&before);
}

/* The service takes the login and then closes, or resets, each connection before a byte is read. */
static void broken_pipe(char **args)
{
    static const size_t sizes[] = {10, 32 << 20};
    size_t i;
    signal(SIGPIPE, SIG_DFL);
    for (i = 0; i < COUNT(sizes); i++) {
        gptalk_client *client = client_at(args[0]);
        char *words = malloc(sizes[i] + 1), *msgs;
        memset(words, 'x', sizes[i]);
        words[sizes[i]] = '\0';
        msgs = gptalk_push(NULL, "user", words);
        CHECK_STATUS(client, gptalk_client_chat(client, msgs, NULL, NULL), GPTALK_NETWORK);
        CHECK_STATUS(client, gptalk_client_chat(client, msgs, NULL, NULL), GPTALK_NETWORK);
        gptalk_free(msgs);
        free(words);
        gptalk_client_free(client);
    }
}

static volatile sig_atomic_t alarms;

static void on_alarm(int number)
{
    (void)number;
    alarms++;
}

/* A signal each millisecond. */
static void storm(int flags)
{
    struct itimerval often = {{0, 1000}, {0, 1000}};
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = on_alarm;
    action.sa_flags = flags;
    CHECK_INT(sigaction(SIGALRM, &action, NULL), 0);
    CHECK_INT(setitimer(ITIMER_REAL, &often, NULL), 0);
}

/* args: URL of a service that answers slowly, of one that is silent in the reply, and whether system calls restart */
static void signal_storm(char **args)
{
    gptalk_client *client = client_at(args[0]);
    long long began;
    int i;
    storm(strcmp(args[2], "restart") == 0 ? SA_RESTART : 0);
    for (i = 0; i < 2; i++)
        check_chat(client, "You said: Hi");
    CHECK_INT(gptalk_get_int(client, "pieces"), 3);
    CHECK(alarms > 100);

    /* Silence is silence, however many signals come. */
    CHECK_STATUS(client, gptalk_set(client, "base_url", args[1]), GPTALK_OK);
    CHECK_STATUS(client, gptalk_set(client, "idle_timeout_ms", "300"), GPTALK_OK);
    began = now_ms();
    CHECK_STATUS(client, gptalk_client_chat(client, HI, NULL, NULL), GPTALK_TIMEOUT);
    CHECK(now_ms() - began >= 300);
    CHECK(now_ms() - began < 300 + LATE_MS);
    CHECK_TEXT(gptalk_get(client, "text"), "Hel");
    gptalk_client_free(client);
}

/* ---- fork ---- */

/* In the child of a fork; it may hang, but not for long. */
static void begin_child(void)
{
    alarm(10);
}

static void check_child(pid_t child)
{
    int status = -1;
    CHECK(child > 0);
    CHECK_INT(waitpid(child, &status, 0), child);
    CHECK_INT(status, 0);
}

static void fork_after_use(char **args)
{
    gptalk_client *client = client_at(args[0]);
    pid_t child;
    int i;
    CHECK_STATUS(NULL, gptalk_set(NULL, "base_url", args[0]), GPTALK_OK);
    CHECK_STATUS(NULL, gptalk_chat(HI, NULL, NULL), GPTALK_OK);
    check_chat(client, SAID_HI);
    child = fork();
    if (child == 0) {
        begin_child();
        CHECK_TEXT(gptalk_get(client, "text"), SAID_HI);
        for (i = 0; i < 2; i++) {
            check_chat(client, SAID_HI);
            CHECK_STATUS(NULL, gptalk_chat(HI, NULL, NULL), GPTALK_OK);
        }
        gptalk_client_free(client);
        _exit(0);
    }
    check_child(child);
    check_chat(client, SAID_HI);
    CHECK_STATUS(NULL, gptalk_chat(HI, NULL, NULL), GPTALK_OK);
    gptalk_client_free(client);
}

static void fork_and_log_in(char **args)
{
    gptalk_client *client = client_at(args[0]);
    int i;
    check_chat(client, SAID_HI);
    for (i = 0; i < 2; i++) {
        pid_t child = fork();
        if (child == 0) {
            begin_child();
            check_chat(client, SAID_HI);
            check_chat(client, SAID_HI);
            _exit(0);
        }
        check_child(child);
    }
    check_chat(client, SAID_HI);
    gptalk_client_free(client);
}

struct forking {
    gptalk_client *other;
    struct heard heard;
};

static int fork_in_callback(const char *text, size_t len, void *userdata)
{
    struct forking *forking = userdata;
    hear(text, len, &forking->heard);
    if (forking->heard.pieces == 1) {
        pid_t child = fork();
        if (child == 0) {
            begin_child();
            check_chat(forking->other, SAID_HI);
            CHECK_STATUS(NULL, gptalk_chat(HI, NULL, NULL), GPTALK_OK);
            _exit(0);
        }
        check_child(child);
        check_chat(forking->other, SAID_HI);
    }
    return 0;
}

static void fork_inside_a_chat(char **args)
{
    gptalk_client *client = client_at(args[0]);
    struct forking forking;
    CHECK_STATUS(NULL, gptalk_set(NULL, "base_url", args[0]), GPTALK_OK);
    forking.other = gptalk_client_clone(client);
    forking.heard = nothing_heard();
    CHECK_STATUS(client, gptalk_client_chat(client, HI, fork_in_callback, &forking), GPTALK_OK);
    CHECK_TEXT(forking.heard.text, SAID_HI);
    gptalk_client_free(forking.other);
    gptalk_client_free(client);
}

static sem_t begun;

static int post_begun(const char *text, size_t len, void *userdata)
{
    (void)text;
    (void)len;
    (void)userdata;
    sem_post(&begun);
    return 0;
}

static void *chat_until_cancelled(void *client)
{
    CHECK_STATUS(client, gptalk_client_chat(client, HI, post_begun, NULL), GPTALK_CANCELLED);
    CHECK_TEXT(gptalk_get(client, "text"), "Hel");
    return NULL;
}

static void *one_liner_until_cancelled(void *userdata)
{
    (void)userdata;
    CHECK_STATUS(NULL, gptalk_chat(HI, post_begun, NULL), GPTALK_CANCELLED);
    return NULL;
}

/* The first two streams stall after "Hel". */
static void fork_while_chatting(char **args)
{
    gptalk_client *client = client_at(args[0]), *copy;
    pthread_t chats[2];
    pid_t child;
    sem_init(&begun, 0, 0);
    CHECK_STATUS(NULL, gptalk_set(NULL, "base_url", args[0]), GPTALK_OK);
    CHECK_INT(pthread_create(&chats[0], NULL, chat_until_cancelled, client), 0);
    CHECK_INT(pthread_create(&chats[1], NULL, one_liner_until_cancelled, NULL), 0);
    sem_wait(&begun);
    sem_wait(&begun);
    child = fork();
    if (child == 0) {
        begin_child();
        CHECK_INT(gptalk_cancel(NULL), 0); /* the one-liner runs in the parent */
        copy = gptalk_client_clone(client);
        check_chat(copy, SAID_HI);
        CHECK_STATUS(copy, gptalk_set(copy, "model", "m"), GPTALK_OK);
        check_chat(copy, SAID_HI);
        gptalk_client_free(copy);
        check_chat(client_at(args[0]), SAID_HI);
        CHECK_STATUS(NULL, gptalk_chat(HI, NULL, NULL), GPTALK_OK);
        CHECK_TEXT(gptalk_get(NULL, "text"), SAID_HI);
        CHECK_INT(gptalk_cancel(NULL), 0);
        _exit(0);
    }
    check_child(child);
    CHECK_INT(gptalk_cancel(client), 1);
    CHECK_INT(gptalk_cancel(NULL), 1);
    pthread_join(chats[0], NULL);
    pthread_join(chats[1], NULL);
    check_chat(client, SAID_HI);
    gptalk_client_free(client);
}

static volatile sig_atomic_t forked_enough;

static void *chat_on_and_on(void *url)
{
    gptalk_client *client = client_at(url);
    while (!forked_enough) {
        check_chat(client, SAID_HI);
        CHECK_STATUS(NULL, gptalk_chat(HI, NULL, NULL), GPTALK_OK);
    }
    gptalk_client_free(client);
    return NULL;
}

/* Chats that are over at once, so that they are at any point of their beginning when a fork comes. */
static void *begin_on_and_on(void *url)
{
    gptalk_client *client = client_at(url);
    while (!forked_enough)
        CHECK_STATUS(client, gptalk_client_chat(client, "[]", NULL, NULL), GPTALK_MISUSE);
    gptalk_client_free(client);
    return NULL;
}

/* Forks at any moment of other threads' chats. */
static void fork_at_any_moment(char **args)
{
    pthread_t chats[3];
    size_t i;
    gptalk_client *client = client_at(args[0]);
    CHECK_STATUS(NULL, gptalk_set(NULL, "base_url", args[0]), GPTALK_OK);
    for (i = 0; i < COUNT(chats); i++)
        CHECK_INT(pthread_create(&chats[i], NULL, i == 0 ? begin_on_and_on : chat_on_and_on, args[0]), 0);
    for (i = 0; i < 100; i++) {
        pid_t child = fork();
        if (child == 0) {
            begin_child();
            check_chat(client, SAID_HI);
            CHECK_STATUS(NULL, gptalk_chat(HI, NULL, NULL), GPTALK_OK);
            _exit(0);
        }
        check_child(child);
    }
    forked_enough = 1;
    for (i = 0; i < COUNT(chats); i++)
        pthread_join(chats[i], NULL);
    check_chat(client, SAID_HI);
    gptalk_client_free(client);
}

static void *set_on_and_on(void *begun)
{
    int i;
    for (i = 0; !forked_enough; i++) {
        CHECK_STATUS(NULL, gptalk_set(NULL, "model", i % 2 ? "one" : "another"), GPTALK_OK);
        if (i == 0)
            sem_post(begun);
    }
    return NULL;
}

/* Forks at any moment of another thread's gptalk_set(): the child has the options that were set before. */
static void fork_while_setting(char **args)
{
    pthread_t setter;
    int i;
    sem_init(&begun, 0, 0);
    CHECK_STATUS(NULL, gptalk_set(NULL, "base_url", args[0]), GPTALK_OK);
    CHECK_INT(pthread_create(&setter, NULL, set_on_and_on, &begun), 0);
    sem_wait(&begun);
    for (i = 0; i < 60; i++) {
        pid_t child = fork();
        if (child == 0) {
            begin_child();
            CHECK_STATUS(NULL, gptalk_chat(HI, NULL, NULL), GPTALK_OK);
            CHECK_TEXT(gptalk_get(NULL, "text"), SAID_HI);
            CHECK(strncmp(gptalk_get(NULL, "url"), args[0], strlen(args[0])) == 0);
            CHECK_STATUS(NULL, gptalk_set(NULL, "model", "a third"), GPTALK_OK);
            _exit(0);
        }
        check_child(child);
    }
    forked_enough = 1;
    pthread_join(setter, NULL);
    CHECK_STATUS(NULL, gptalk_chat(HI, NULL, NULL), GPTALK_OK);
    CHECK_TEXT(gptalk_get(NULL, "text"), SAID_HI);
}

static void *set_and_begin_on_and_on(void *data)
{
    gptalk_client *client = data;
    while (!forked_enough) {
        CHECK_STATUS(client, gptalk_set(client, "model", "one"), GPTALK_OK);
        CHECK_STATUS(client, gptalk_client_chat(client, "[]", NULL, NULL), GPTALK_MISUSE);
    }
    return NULL;
}

/* Forks while another thread uses a client: the child may clone it. */
static void fork_and_clone(char **args)
{
    pthread_t thread;
    int i;
    gptalk_client *client = client_at(args[0]);
    CHECK_INT(pthread_create(&thread, NULL, set_and_begin_on_and_on, client), 0);
    for (i = 0; i < 300; i++) {
        pid_t child = fork();
        if (child == 0) {
            gptalk_client *clone;
            begin_child();
            clone = gptalk_client_clone(client);
            if (i % 30 == 0)
                check_chat(clone, SAID_HI);
            gptalk_client_free(clone);
            _exit(0);
        }
        check_child(child);
    }
    forked_enough = 1;
    pthread_join(thread, NULL);
    check_chat(client, SAID_HI);
    gptalk_client_free(client);
}

static void *one_of_the_first(void *barrier)
{
    pthread_barrier_wait(barrier);
    CHECK_STATUS(NULL, gptalk_chat("[]", NULL, NULL), GPTALK_MISUSE);
    CHECK_STATUS(NULL, gptalk_chat(HI, NULL, NULL), GPTALK_OK);
    return NULL;
}

/* A child whose first chats run at once counts them as its own. */
static void first_chats_of_a_child(char **args)
{
    int i, j;
    CHECK_STATUS(NULL, gptalk_set(NULL, "base_url", args[0]), GPTALK_OK);
    for (i = 0; i < 100; i++) {
        pid_t child = fork();
        if (child == 0) {
            pthread_barrier_t barrier;
            pthread_t threads[4];
            begin_child();
            pthread_barrier_init(&barrier, NULL, COUNT(threads));
            for (j = 0; j < (int)COUNT(threads); j++)
                CHECK_INT(pthread_create(&threads[j], NULL, one_of_the_first, &barrier), 0);
            for (j = 0; j < (int)COUNT(threads); j++)
                pthread_join(threads[j], NULL);
            CHECK_INT(gptalk_cancel(NULL), 0);
            _exit(0);
        }
        check_child(child);
    }
}

static void set_at_fork(void)
{
    CHECK_STATUS(NULL, gptalk_set(NULL, "model", "forked"), GPTALK_OK);
    gptalk_client_free(gptalk_client_new());
}

/* The host's own handlers, which run while the library's hold others back. */
static void fork_with_handlers(char **args)
{
    pid_t child;
    CHECK_INT(pthread_atfork(set_at_fork, set_at_fork, set_at_fork), 0);
    CHECK_STATUS(NULL, gptalk_set(NULL, "base_url", args[0]), GPTALK_OK);
    alarm(10);
    child = fork();
    if (child == 0) {
        begin_child();
        CHECK_STATUS(NULL, gptalk_chat(HI, NULL, NULL), GPTALK_OK);
        _exit(0);
    }
    check_child(child);
    CHECK_STATUS(NULL, gptalk_chat(HI, NULL, NULL), GPTALK_OK);
    alarm(0);
}

/* ---- stacks, descriptors, locales ---- */

static void *chat_on_a_stack(void *data)
{
    char **args = data, body[512] = "{\"y\": [";
    gptalk_client *client = client_at(args[0]);
    size_t depth = strtoul(args[2], NULL, 10);
    memset(body + strlen(body), '[', depth);
    memset(body + strlen(body), ']', depth);
    strcat(body, "]}");
    CHECK_STATUS(client, gptalk_set(client, "body", body), GPTALK_OK);
    check_chat(client, SAID_HI);
    gptalk_client_free(client);
    CHECK_STATUS(NULL, gptalk_chat(HI, NULL, NULL), GPTALK_OK);
    return NULL;
}

/* args: URL, KiB, how deep the JSON is */
static void small_stack(char **args)
{
    pthread_attr_t attributes;
    pthread_t thread;
    CHECK_STATUS(NULL, gptalk_set(NULL, "base_url", args[0]), GPTALK_OK);
    pthread_attr_init(&attributes);
    CHECK_INT(pthread_attr_setstacksize(&attributes, strtoul(args[1], NULL, 10) * 1024), 0);
    CHECK_INT(pthread_create(&thread, &attributes, chat_on_a_stack, args), 0);
    pthread_join(thread, NULL);
}

/* Descriptors 0 to 2 are anybody's; a check that fails here says nothing but its exit code. */
static void closed_descriptors(char **args)
{
    int i;
    for (i = 0; i < 3; i++)
        close(i);
    chat_alone(args);
    for (i = 0; i < 3; i++)
        CHECK(open("/dev/null", O_RDWR) >= 0);
}

static void no_descriptors_left(char **args)
{
    gptalk_client *client = client_at(args[0]);
    struct rlimit limit, none;
    int next = open("/dev/null", O_RDONLY);
    close(next);
    CHECK_INT(getrlimit(RLIMIT_NOFILE, &limit), 0);
    none = limit;
    none.rlim_cur = next;
    CHECK_INT(setrlimit(RLIMIT_NOFILE, &none), 0);
    CHECK_STATUS(client, gptalk_client_chat(client, HI, NULL, NULL), GPTALK_NETWORK);
    CHECK_INT(setrlimit(RLIMIT_NOFILE, &limit), 0);
    check_chat(client, SAID_HI);
    gptalk_client_free(client);
}

/* Says what it leaves out where no locale writes a comma. */
static void comma_locale(char **args)
{
    static const char *const names[] = {"de_DE.UTF-8", "fr_FR.UTF-8", "ru_RU.UTF-8", "de_DE", "ru_RU"};
    gptalk_client *client;
    size_t i;
    for (i = 0; i < COUNT(names); i++)
        if (setlocale(LC_ALL, names[i]) != NULL && localeconv()->decimal_point[0] == ',')
            break;
    if (i == COUNT(names)) {
        printf("no locale with a decimal comma is installed");
        exit(77);
    }
    client = client_at(args[0]);
    CHECK_STATUS(client, gptalk_set(client, "temperature", "0.5"), GPTALK_OK);
    check_chat(client, SAID_HI);
    gptalk_client_free(client);
}

/* ---- nothing grows, nothing leaks ---- */

/* args: URL, URL of a service that fails */
static void no_growth(char **args)
{
    gptalk_client *good = client_at(args[0]), *bad = client_at(args[1]);
    size_t before = 0;
    int descriptors = 0, i;
    for (i = 0; i < 600; i++) {
        if (i == 100) {
            before = heap();
            descriptors = entries("/proc/self/fd");
        }
        check_chat(good, SAID_HI);
        CHECK_STATUS(bad, gptalk_client_chat(bad, HI, NULL, NULL), GPTALK_SERVER);
        gptalk_client_free(gptalk_client_clone(good));
    }
    CHECK(entries("/proc/self/fd") <= descriptors);
    CHECK(heap() < before + 16384); /* 500 chats: 33 bytes of each would show */
    gptalk_client_free(good);
    gptalk_client_free(bad);
}

/* The most memory that the process has had, in KiB. */
static long peak(void)
{
    struct rusage usage;
    CHECK_INT(getrusage(RUSAGE_SELF, &usage), 0);
    return usage.ru_maxrss;
}

static int count_bytes(const char *text, size_t len, void *bytes)
{
    (void)text;
    *(size_t *)bytes += len;
    return 0;
}

/* args: protocol, URL, length of the replies */
static void bounded_memory(char **args)
{
    gptalk_client *client = client_at(args[1]);
    size_t bytes = 0;
    long before;
    CHECK_STATUS(client, gptalk_set(client, "protocol", args[0]), GPTALK_OK);
    before = peak();
    CHECK_STATUS(client, gptalk_client_chat(client, HI, count_bytes, &bytes), GPTALK_OK);
    CHECK_INT(bytes, strtol(args[2], NULL, 10));
    CHECK(peak() < before + 3 * 1024);
    gptalk_client_free(client);
}

static int free_in_callback(const char *text, size_t len, void *client)
{
    (void)text;
    if (len > 0 && *(gptalk_client **)client != NULL) {
        gptalk_client_free(*(gptalk_client **)client);
        *(gptalk_client **)client = NULL;
    }
    return 0;
}

static void *one_liner_on_a_thread(void *userdata)
{
    (void)userdata;
    CHECK_STATUS(NULL, gptalk_chat(HI, NULL, NULL), GPTALK_OK);
    CHECK_TEXT(gptalk_get(NULL, "text"), SAID_HI);
    return NULL;
}

/* For valgrind. args: URL, URL of a service that fails */
static void every_way(char **args)
{
    gptalk_client *client = client_at(args[0]), *bad = client_at(args[1]), *copy;
    struct heard heard = nothing_heard();
    char *msgs, *more;
    pthread_t thread;

    check_chat(client, SAID_HI);
    CHECK_STATUS(bad, gptalk_client_chat(bad, HI, NULL, NULL), GPTALK_SERVER);
    CHECK(gptalk_get(bad, "error") != NULL && gptalk_get(bad, "error_body") != NULL);
    heard.stop_at = 1;
    CHECK_STATUS(client, gptalk_client_chat(client, HI, hear, &heard), GPTALK_CANCELLED);
    CHECK_STATUS(client, gptalk_client_chat(client, "no JSON", hear, &heard), GPTALK_MISUSE);
    CHECK_STATUS(client, gptalk_set(client, "retries", "many"), GPTALK_MISUSE);

    heard = nothing_heard();
    CHECK_STATUS(client, gptalk_on(client, "event", hear, &heard), GPTALK_OK);
    CHECK_STATUS(client, gptalk_on(client, "log", hear, &heard), GPTALK_OK);
    CHECK_STATUS(client, gptalk_start(client, HI), GPTALK_OK);
    CHECK_TEXT(gptalk_next(client, NULL), "You ");
    CHECK_INT(gptalk_cancel(client), 1);
    CHECK_TEXT(gptalk_next(client, NULL), NULL);
    CHECK_STATUS(client, gptalk_finish(client), GPTALK_CANCELLED);

    msgs = gptalk_push(NULL, "user", "\"Привет\"");
    CHECK_STATUS(client, gptalk_client_chat(client, msgs, NULL, NULL), GPTALK_OK);
    more = gptalk_push(msgs, NULL, gptalk_get(client, "message"));
    CHECK(more != NULL);
    CHECK_TEXT(gptalk_push(more, NULL, "no JSON"), NULL);
    gptalk_free(msgs);
    gptalk_free(more);

    copy = gptalk_client_clone(client);
    gptalk_client_free(client);
    check_chat(copy, SAID_HI);
    CHECK_STATUS(copy, gptalk_start(copy, HI), GPTALK_OK);
    CHECK_TEXT(gptalk_next(copy, NULL), "You ");
    gptalk_client_free(copy);

    copy = client = client_at(args[0]);
    CHECK_INT(gptalk_client_chat(client, HI, free_in_callback, &copy), GPTALK_OK);

    CHECK_STATUS(NULL, gptalk_set(NULL, "base_url", args[0]), GPTALK_OK);
    CHECK_STATUS(NULL, gptalk_chat(HI, NULL, NULL), GPTALK_OK);
    CHECK_INT(pthread_create(&thread, NULL, one_liner_on_a_thread, NULL), 0);
    pthread_join(thread, NULL);
    gptalk_client_free(bad);
}

static const struct promise promises[] = {
    {"nothing", nothing},
    {"chat_alone", chat_alone},
    {"no_thread", no_thread},
    {"no_more_processes", no_more_processes},
    {"signals_untouched", signals_untouched},
    {"broken_pipe", broken_pipe},
    {"signal_storm", signal_storm},
    {"fork_after_use", fork_after_use},
    {"fork_and_log_in", fork_and_log_in},
    {"fork_inside_a_chat", fork_inside_a_chat},
    {"fork_while_chatting", fork_while_chatting},
    {"fork_at_any_moment", fork_at_any_moment},
    {"fork_while_setting", fork_while_setting},
    {"fork_and_clone", fork_and_clone},
    {"first_chats_of_a_child", first_chats_of_a_child},
    {"fork_with_handlers", fork_with_handlers},
    {"small_stack", small_stack},
    {"closed_descriptors", closed_descriptors},
    {"no_descriptors_left", no_descriptors_left},
    {"comma_locale", comma_locale},
    {"environment_once", environment_once},
    {"no_growth", no_growth},
    {"bounded_memory", bounded_memory},
    {"every_way", every_way},
};

int main(int argc, char **argv)
{
    return KEEP(promises);
}
