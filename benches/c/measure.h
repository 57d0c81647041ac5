/* What the clients of the bench have in common: how they are called, and what is measured of them.
 *
 *     CLIENT openai|gptalk URL CHATS [THREADS]
 *
 * Each thread opens a client of its own, and chats so often, one chat after another. What that took is one
 * line of NAME=VALUE: times in microseconds, of the wall and of the processor (user and system), the
 * peak of memory in KiB, and allocations where allocations.c is linked. What begins with "first_" is of the first
 * chat, with all that comes before it. With CHAT_HASH in the environment `hash` tells texts apart. */
#ifndef MEASURE_H
#define MEASURE_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "allocations.h"

#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

#define PROMPT "hello"

struct mark {
    long wall, cpu;
    struct allocations allocations;
};

/* One thread's chats. */
struct chats {
    const char *url;
    int is_openai;
    long wanted, failed;
    long pieces, bytes;
    int is_hashed;
    uint64_t hash;
    struct mark after_first;
};

/* What a client is. A chat that has not brought the whole reply is not 0. */
static void *open_client(struct chats *chats);
static int chat(void *client, struct chats *chats);
static void close_client(void *client);

/* For each piece of a reply. */
static inline void take(struct chats *chats, const char *text, size_t len)
{
    chats->pieces++;
    chats->bytes += (long)len;
    for (size_t i = 0; chats->is_hashed && i < len; i++)
        chats->hash = (chats->hash ^ (unsigned char)text[i]) * 1099511628211u;
}

static inline struct mark mark(void)
{
    struct mark now = {0, 0, {0, 0}};
    struct timespec wall;
    struct rusage cpu;
    clock_gettime(CLOCK_MONOTONIC, &wall);
    getrusage(RUSAGE_SELF, &cpu);
    now.wall = wall.tv_sec * 1000000L + wall.tv_nsec / 1000;
    now.cpu = (cpu.ru_utime.tv_sec + cpu.ru_stime.tv_sec) * 1000000L + cpu.ru_utime.tv_usec + cpu.ru_stime.tv_usec;
    if (allocations)
        now.allocations = allocations();
    return now;
}

static inline void print_since(const char *prefix, struct mark then, struct mark now)
{
    printf(" %swall=%ld %scpu=%ld", prefix, now.wall - then.wall, prefix, now.cpu - then.cpu);
    printf(" %sallocations=%ld %sreallocations=%ld", prefix, now.allocations.fresh - then.allocations.fresh, prefix,
           now.allocations.resized - then.allocations.resized);
}

/* The kernel's own mark, which begins anew with the program: `ru_maxrss` may be the parent's. */
static inline long peak_kib(void)
{
    char line[128];
    long peak = 0;
    FILE *status = fopen("/proc/self/status", "r");
    while (status && fgets(line, sizeof line, status))
        if (sscanf(line, "VmHWM: %ld", &peak) == 1)
            break;
    if (status)
        fclose(status);
    return peak;
}

static void *run(void *userdata)
{
    struct chats *chats = userdata;
    void *client = open_client(chats);
    for (long n = 0; n < chats->wanted; n++) {
        chats->failed += chat(client, chats) != 0;
        if (n == 0)
            chats->after_first = mark();
    }
    close_client(client);
    return NULL;
}

int main(int argc, char **argv)
{
    if (argc < 4) {
        fprintf(stderr, "usage: %s openai|gptalk URL CHATS [THREADS]\n", argv[0]);
        return 2;
    }
    int threads = argc > 4 ? atoi(argv[4]) : 1;
    struct chats each = {.url = argv[2], .is_openai = argv[1][0] == 'o', .wanted = atol(argv[3])};
    each.is_hashed = getenv("CHAT_HASH") != NULL;
    each.hash = 14695981039346656037u;
    struct chats all = each;
    struct mark before = mark();
    if (threads == 1) {
        run(&all);
    } else {
        struct chats *chats = calloc((size_t)threads, sizeof *chats);
        pthread_t *ids = calloc((size_t)threads, sizeof *ids);
        for (int i = 0; i < threads; i++) {
            chats[i] = each;
            if (pthread_create(&ids[i], NULL, run, &chats[i]) != 0) {
                perror("pthread_create");
                return 1;
            }
        }
        for (int i = 0; i < threads; i++) {
            pthread_join(ids[i], NULL);
            all.failed += chats[i].failed;
            all.pieces += chats[i].pieces;
            all.bytes += chats[i].bytes;
        }
        free(ids);
        free(chats);
    }
    struct mark after = mark();
    long peak = peak_kib();
    printf("chats=%ld failed=%ld pieces=%ld bytes=%ld", each.wanted * threads, all.failed, all.pieces, all.bytes);
    if (each.is_hashed)
        printf(" hash=%lu", (unsigned long)(all.hash >> 32));
    print_since("", before, after);
    if (threads == 1)
        print_since("first_", before, all.after_first);
    printf(" peak=%ld\n", peak);
    return all.failed != 0;
}

#endif
