/* What stands between a program and the system's calls, so that they fail when the program wants it. */
#ifndef SHIM_H
#define SHIM_H

#include <stddef.h>

/* `fcntl` is `ioctl` too. */
enum call { SOCKET, SETSOCKOPT, FCNTL, CONNECT, GETSOCKOPT, POLL, SEND, RECV, CLOSE, GETADDRINFO, GETRANDOM, CALLS };

enum how {
    FAILS,   /* with `error`: an errno, or an EAI_ of getaddrinfo's */
    REPORTS, /* getsockopt: the option, SO_ERROR, is `error` */
    SHORT,   /* recv, send, getrandom: one byte; poll: nothing is ready */
    ENDS     /* recv: the end, for good */
};

struct fault {
    enum call call;
    enum how how;
    int error;
    long nth;   /* from 1 */
    int sticky; /* so do those behind it */
};

/* From now on calls are counted; NULL: and all go well. */
void shim_arm(const struct fault *fault);

/* Lets all calls go well again. */
void shim_disarm(void);

/* How often a call came while the shim was armed. */
long shim_count(enum call call);

/* How many bytes came while the shim was armed. */
size_t shim_received(void);

/* While armed, a send and a receive take so many bytes at most; 0: any number. */
void shim_limit(size_t bytes);

/* While armed, a receive ends at that byte of all that come; 0: anywhere. */
void shim_split(size_t at);

/* Whether one has ended there. */
int shim_was_split(void);

/* While armed, a signal interrupts the first call of each kind, the third, the fifth... */
void shim_storm(int on);

#endif
