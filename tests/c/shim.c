/* Stands between a program that it is linked into and the C library: the dynamic linker finds these functions
 * first, also for the libraries that the program uses (an LD_PRELOAD without the variable). One thread only.
 *
 * Time that a fault would take does not pass: the clock is put forward. */
#define _DEFAULT_SOURCE /* without connect() as a GNU function, and so without RTLD_NEXT */
#include "shim.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <poll.h>
#include <stdarg.h>
#include <sys/ioctl.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#ifndef RTLD_NEXT
#define RTLD_NEXT ((void *)-1L)
#endif

#define SIGNAL_NS 1000000LL       /* how long after a call has begun the signal comes */
#define SLICE_NS (50 * 1000000LL) /* the receive and send timeouts that the library sets */

static int armed, storm;
static struct fault fault;
static long counts[CALLS];
static size_t limit, split_at, received;
static int was_split;
static long long skipped_ns; /* by which the clock has been put forward */

void shim_arm(const struct fault *what)
{
    static const struct fault none;
    int i;
    fault = what != NULL ? *what : none; /* the 0th call never comes */
    for (i = 0; i < CALLS; i++)
        counts[i] = 0;
    received = 0;
    was_split = 0;
    armed = 1;
}

void shim_disarm(void)
{
    armed = 0;
}

long shim_count(enum call call)
{
    return counts[call];
}

size_t shim_received(void)
{
    return received;
}

void shim_limit(size_t bytes)
{
    limit = bytes;
}

void shim_split(size_t at)
{
    split_at = at;
}

int shim_was_split(void)
{
    return was_split;
}

void shim_storm(int on)
{
    storm = on;
}

/* The function that this one hides. */
#define REAL(name) real(#name, &real_##name)

static void *real(const char *name, void **known)
{
    if (*known == NULL)
        *known = dlsym(RTLD_NEXT, name);
    return *known;
}

/* Declares `next`, of that type, to be the function behind this one. */
#define NEXT(name, result, parameters)                                                                               \
    static void *real_##name;                                                                                       \
    result(*next) parameters;                                                                                       \
    *(void **)&next = REAL(name)

/* Counts a call; the fault that befalls it, or NULL. */
static const struct fault *strikes(enum call call)
{
    static const struct fault interrupt = {CALLS, FAILS, EINTR, 0, 0};
    long nth;
    if (!armed)
        return NULL;
    nth = ++counts[call];
    if (fault.call == call && fault.nth > 0 && (nth == fault.nth || (fault.sticky && nth > fault.nth)))
        return &fault;
    switch (call) {
    case CONNECT:
    case POLL:
    case SEND:
    case RECV:
    case CLOSE:
    case GETRANDOM:
        return storm && nth % 2 == 1 ? &interrupt : NULL;
    default: /* are not interrupted */
        return NULL;
    }
}

/* A call fails, after a wait where it waits for something. */
static int fail(int error, long long wait_ns)
{
    skipped_ns += error == EINTR ? SIGNAL_NS : error == EAGAIN ? wait_ns : 0;
    errno = error;
    return -1;
}

/* How many bytes a call may take. */
static size_t most(const struct fault *strikes, size_t wanted)
{
    if (strikes != NULL && wanted > 1)
        return 1;
    return armed && limit > 0 && wanted > limit ? limit : wanted;
}

/* ---- sockets ---- */

int socket(int domain, int type, int protocol)
{
    const struct fault *now = strikes(SOCKET);
    NEXT(socket, int, (int, int, int));
    return now ? fail(now->error, 0) : next(domain, type, protocol);
}

int connect(int fd, const struct sockaddr *address, socklen_t size)
{
    const struct fault *now = strikes(CONNECT);
    NEXT(connect, int, (int, const struct sockaddr *, socklen_t));
    if (now == NULL)
        return next(fd, address, size);
    if (now->error == EINTR) /* it goes on */
        next(fd, address, size);
    return fail(now->error, 0);
}

int setsockopt(int fd, int level, int name, const void *value, socklen_t size)
{
    const struct fault *now = strikes(SETSOCKOPT);
    NEXT(setsockopt, int, (int, int, int, const void *, socklen_t));
    return now ? fail(now->error, 0) : next(fd, level, name, value, size);
}

int getsockopt(int fd, int level, int name, void *restrict value, socklen_t *restrict size)
{
    const struct fault *now = strikes(GETSOCKOPT);
    int result;
    NEXT(getsockopt, int, (int, int, int, void *, socklen_t *));
    if (now != NULL && now->how == FAILS)
        return fail(now->error, 0);
    result = next(fd, level, name, value, size);
    if (now != NULL && result == 0 && name == SO_ERROR)
        *(int *)value = now->error;
    return result;
}

/* What comes behind the command, if anything does: a pointer or an int, which a pointer holds. */
#define ARGUMENT(argument, last)                                                                                     \
    va_list list;                                                                                                   \
    void *argument;                                                                                                 \
    va_start(list, last);                                                                                           \
    argument = va_arg(list, void *);                                                                                \
    va_end(list)

int fcntl(int fd, int command, ...)
{
    const struct fault *now = strikes(FCNTL);
    NEXT(fcntl, int, (int, int, ...));
    ARGUMENT(argument, command);
    return now ? fail(now->error, 0) : next(fd, command, argument);
}

int ioctl(int fd, unsigned long command, ...)
{
    const struct fault *now = strikes(FCNTL);
    NEXT(ioctl, int, (int, unsigned long, ...));
    ARGUMENT(argument, command);
    return now ? fail(now->error, 0) : next(fd, command, argument);
}

int poll(struct pollfd *entries, nfds_t count, int ms)
{
    const struct fault *now = strikes(POLL);
    nfds_t i;
    NEXT(poll, int, (struct pollfd *, nfds_t, int));
    if (now == NULL)
        return next(entries, count, ms);
    if (now->how == FAILS)
        return fail(now->error, 0);
    for (i = 0; i < count; i++)
        entries[i].revents = 0;
    skipped_ns += ms * 1000000LL;
    return 0;
}

ssize_t send(int fd, const void *bytes, size_t len, int flags)
{
    const struct fault *now = strikes(SEND);
    NEXT(send, ssize_t, (int, const void *, size_t, int));
    if (now != NULL && now->how == FAILS) {
        if (now->error != EINTR && now->error != EAGAIN)
            shutdown(fd, SHUT_RD); /* nobody waits for the answer to a part of a request */
        return fail(now->error, SLICE_NS);
    }
    return next(fd, bytes, most(now, len), flags);
}

ssize_t recv(int fd, void *bytes, size_t len, int flags)
{
    const struct fault *now = strikes(RECV);
    ssize_t result;
    NEXT(recv, ssize_t, (int, void *, size_t, int));
    if (now != NULL && now->how == FAILS)
        return fail(now->error, SLICE_NS);
    if (now != NULL && now->how == ENDS)
        return 0;
    len = most(now, len);
    if (armed && received < split_at && len > split_at - received)
        len = split_at - received;
    result = next(fd, bytes, len, flags);
    if (armed && result > 0)
        received += result;
    was_split |= armed && result > 0 && received == split_at;
    return result;
}

int close(int fd)
{
    const struct fault *now = strikes(CLOSE);
    int result;
    NEXT(close, int, (int));
    result = next(fd); /* Linux closes it in any case */
    return now ? fail(now->error, 0) : result;
}

/* ---- what else a chat asks the system for ---- */

int getaddrinfo(const char *restrict host, const char *restrict service, const struct addrinfo *restrict hints,
                struct addrinfo **restrict result)
{
    const struct fault *now = strikes(GETADDRINFO);
    NEXT(getaddrinfo, int, (const char *, const char *, const struct addrinfo *, struct addrinfo **));
    if (now == NULL)
        return next(host, service, hints, result);
    errno = EMFILE; /* for EAI_SYSTEM */
    return now->error;
}

ssize_t getrandom(void *bytes, size_t len, unsigned int flags)
{
    const struct fault *now = strikes(GETRANDOM);
    NEXT(getrandom, ssize_t, (void *, size_t, unsigned int));
    if (now != NULL && now->how == FAILS)
        return fail(now->error, 0);
    return next(bytes, now ? most(now, len) : len, flags);
}

/* ---- the clock ---- */

int clock_gettime(clockid_t clock, struct timespec *time)
{
    NEXT(clock_gettime, int, (clockid_t, struct timespec *));
    if (next(clock, time) != 0)
        return -1;
    if (clock == CLOCK_MONOTONIC) {
        long long ns = time->tv_nsec + skipped_ns;
        time->tv_sec += ns / 1000000000;
        time->tv_nsec = ns % 1000000000;
    }
    return 0;
}

static long long ns_of(const struct timespec *time)
{
    return time->tv_sec * 1000000000LL + time->tv_nsec;
}

int clock_nanosleep(clockid_t clock, int flags, const struct timespec *wanted, struct timespec *left)
{
    long long ns = ns_of(wanted);
    (void)left;
    if (flags & TIMER_ABSTIME) {
        struct timespec now;
        clock_gettime(clock, &now);
        ns -= ns_of(&now);
    }
    skipped_ns += ns > 0 ? ns : 0;
    return 0;
}

int nanosleep(const struct timespec *wanted, struct timespec *left)
{
    return clock_nanosleep(CLOCK_MONOTONIC, 0, wanted, left);
}
