/* What entries are pointed at. */
#ifndef SYNCAGENT_WRAPPERS_H
#define SYNCAGENT_WRAPPERS_H

#include "runtimes.h"

extern const uintptr_t wrappers[MOST_RUNTIMES][FUNCTIONS];

extern _Atomic(int) live; /* 0: wrappers pass calls through */
extern _Atomic(uint64_t) threshold;

#endif
