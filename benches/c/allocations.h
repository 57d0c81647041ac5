/* How often memory was asked for so far: for new blocks, and for blocks to have another size. */
#ifndef ALLOCATIONS_H
#define ALLOCATIONS_H

struct allocations {
    long fresh, resized;
};

/* Missing where allocations.c is not linked. */
__attribute__((weak)) struct allocations allocations(void);

#endif
