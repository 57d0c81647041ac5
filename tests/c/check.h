/* What the programs of this folder share: checks that say what they expected, and a callback that listens. */
#ifndef CHECK_H
#define CHECK_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <dirent.h>
#include <gptalk.h>
#include <malloc.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define HI "[{\"role\":\"user\",\"content\":\"Hi\"}]"
#define SAID_HI "You said: Hi" /* in three pieces */

/* How late a cancel may be noticed: 100 ms as promised, and what a busy machine adds. */
#define LATE_MS 1500

/* How many one-liners there were, each of which may keep a connection for the next. */
static int one_liners;
#define gptalk_chat(...) (__sync_fetch_and_add(&one_liners, 1), gptalk_chat(__VA_ARGS__))

#define CHECK(holds) ((holds) ? (void)0 : failed(__FILE__, __LINE__, #holds))
#define CHECK_INT(is, expected) check_int(__FILE__, __LINE__, #is, is, expected)
#define CHECK_TEXT(is, expected) check_text(__FILE__, __LINE__, #is, is, expected)
#define CHECK_STATUS(client, is, expected) check_status(__FILE__, __LINE__, #is, client, is, expected)

static inline void failed(const char *file, int line, const char *expectation)
{
    fprintf(stderr, "%s:%d: %s\n", file, line, expectation);
    _exit(1);
}

static inline void check_int(const char *file, int line, const char *what, long long is, long long expected)
{
    if (is != expected) {
        fprintf(stderr, "%s:%d: %s is %lld, not %lld\n", file, line, what, is, expected);
        _exit(1);
    }
}

/* NULL is a text of its own. */
static inline void check_text(const char *file, int line, const char *what, const char *is, const char *expected)
{
    int same = is == NULL || expected == NULL ? is == expected : strcmp(is, expected) == 0;
    if (!same) {
        fprintf(stderr, "%s:%d: %s is \"%s\", not \"%s\"\n", file, line, what, is ? is : "(NULL)",
                expected ? expected : "(NULL)");
        _exit(1);
    }
}

static inline void check_status(const char *file, int line, const char *what, const gptalk_client *client,
                                gptalk_status is, gptalk_status expected)
{
    if (is != expected) {
        const char *error = gptalk_get(client, "error");
        fprintf(stderr, "%s:%d: %s is %s, not %s: %s\n", file, line, what, gptalk_status_name(is),
                gptalk_status_name(expected), error ? error : "(no error)");
        _exit(1);
    }
}

static inline long long now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000LL + now.tv_nsec / 1000000;
}

/* How many entries a folder of /proc/self has. */
static inline int entries(const char *path)
{
    DIR *folder = opendir(path);
    struct dirent *entry;
    int count = 0;
    CHECK(folder != NULL);
    while ((entry = readdir(folder)) != NULL)
        count += entry->d_name[0] != '.';
    closedir(folder);
    return count;
}

/* How many bytes of the heap are in use; what malloc keeps for a thread counts, too. */
static inline size_t heap(void)
{
#if defined(__GLIBC__) && (__GLIBC__ > 2 || __GLIBC_MINOR__ >= 33)
    return mallinfo2().uordblks;
#else
    return 0;
#endif
}

/* A client of the service at that URL, which does not retry. */
static inline gptalk_client *client_at(const char *url)
{
    gptalk_client *client = gptalk_client_new();
    CHECK(client != NULL);
    CHECK_STATUS(client, gptalk_set(client, "base_url", url), GPTALK_OK);
    CHECK_STATUS(client, gptalk_set(client, "retries", "0"), GPTALK_OK);
    return client;
}

/* What came of a channel. Zeroed, and `thread` set, it is ready for hear(). */
struct heard {
    pthread_t thread;
    int stop_at; /* the piece at which to cancel; 0: none */
    int pieces;
    size_t len;
    char text[4096];
};

static inline struct heard nothing_heard(void)
{
    struct heard heard;
    memset(&heard, 0, sizeof heard);
    heard.thread = pthread_self();
    return heard;
}

/* A callback that joins the pieces, and holds them to their promises. */
static inline int hear(const char *text, size_t len, void *userdata)
{
    struct heard *heard = (struct heard *)userdata;
    CHECK(text != NULL);
    CHECK(text[len] == '\0');
    CHECK(pthread_equal(heard->thread, pthread_self()));
    CHECK(heard->len + len < sizeof heard->text);
    memcpy(heard->text + heard->len, text, len);
    heard->len += len;
    heard->pieces++;
    return heard->pieces == heard->stop_at;
}

/* Counts ticks. */
static inline int hear_tick(const char *text, size_t len, void *ticks)
{
    CHECK_TEXT(text, "");
    CHECK_INT(len, 0);
    ++*(int *)ticks;
    return 0;
}

/* Counts lines of the log, which show no secret. */
static inline int hear_log(const char *line, size_t len, void *lines)
{
    CHECK_INT(strlen(line), len);
    CHECK(len > 0);
    CHECK(strchr(line, '\n') == NULL);
    CHECK(strstr(line, "SENTINEL") == NULL);
    ++*(int *)lines;
    return 0;
}

/* The client works: a chat says what it should. */
static inline void check_chat(gptalk_client *client, const char *reply)
{
    struct heard heard = nothing_heard();
    CHECK_STATUS(client, gptalk_client_chat(client, HI, hear, &heard), GPTALK_OK);
    CHECK_TEXT(heard.text, reply);
    CHECK_TEXT(gptalk_get(client, "text"), reply);
    CHECK_TEXT(gptalk_get(client, "error"), NULL);
}

struct promise {
    const char *name;
    void (*check)(char **args);
};

/* The sanitizer of data races has a thread of its own, once there are two. */
extern void __tsan_init(void) __attribute__((weak));

/* No more tasks than before; one that was joined may still be on its way out. */
static inline void check_tasks(int before)
{
    const long long end = now_ms() + 1000;
    while (__tsan_init == NULL && entries("/proc/self/task") != before)
        CHECK(now_ms() < end);
}

/* `PROGRAM NAME ARGS...` keeps the promise of that name, and leaves no task and no descriptor. */
static inline int keep(const struct promise *promises, size_t count, int argc, char **argv)
{
    for (size_t i = 0; argc > 1 && i < count; i++)
        if (strcmp(promises[i].name, argv[1]) == 0) {
            int tasks = entries("/proc/self/task"), descriptors = entries("/proc/self/fd");
            promises[i].check(argv + 2);
            check_tasks(tasks);
            descriptors = entries("/proc/self/fd") - descriptors;
            CHECK(descriptors >= 0 && descriptors <= one_liners);
            return 0;
        }
    fprintf(stderr, "no such promise: %s\n", argc > 1 ? argv[1] : "(none)");
    return 2;
}

#define KEEP(promises) keep(promises, sizeof promises / sizeof promises[0], argc, argv)

#endif
