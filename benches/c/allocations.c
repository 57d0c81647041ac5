/* Counts allocations, those of libraries too: a program's own functions come before the system's. With glibc. */
#include "allocations.h"

#include <errno.h>
#include <stddef.h>

extern void *__libc_malloc(size_t);
extern void *__libc_calloc(size_t, size_t);
extern void *__libc_realloc(void *, size_t);
extern void *__libc_memalign(size_t, size_t);

static long fresh, resized;

struct allocations allocations(void)
{
    struct allocations now = {__atomic_load_n(&fresh, __ATOMIC_RELAXED), __atomic_load_n(&resized, __ATOMIC_RELAXED)};
    return now;
}

static void count(long *what)
{
    __atomic_fetch_add(what, 1, __ATOMIC_RELAXED);
}

void *malloc(size_t size)
{
    count(&fresh);
    return __libc_malloc(size);
}

void *calloc(size_t n, size_t size)
{
    count(&fresh);
    return __libc_calloc(n, size);
}

void *realloc(void *block, size_t size)
{
    count(block ? &resized : &fresh);
    return __libc_realloc(block, size);
}

void *aligned_alloc(size_t alignment, size_t size)
{
    count(&fresh);
    return __libc_memalign(alignment, size);
}

int posix_memalign(void **block, size_t alignment, size_t size)
{
    count(&fresh);
    *block = __libc_memalign(alignment, size);
    return *block ? 0 : ENOMEM;
}
