/* What entries for functions of streams, events and collectives are pointed at, while joins are measured. */
#ifndef SYNCAGENT_HOOKS_H
#define SYNCAGENT_HOOKS_H

#include "runtimes.h"

/* By library, and by the function's number less FUNCTIONS; 0 where a library of that kind has no such function. */
extern const uintptr_t hooks[LIBRARIES][ALL_FUNCTIONS - FUNCTIONS];

/* Whether entries are to point at them. */
extern _Atomic(int) hooks_wanted;

void start_hooks(void);
void stop_hooks(void);

/* The stream whose waits are measured; 0: the default stream, by any of its names. */
void set_compute_stream(uint64_t stream);

#endif
