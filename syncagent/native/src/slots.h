/* Where threads note what they wait for: a slot for each, a ring of ended waits, and sums. No locks, no memory. */
#ifndef SYNCAGENT_SLOTS_H
#define SYNCAGENT_SLOTS_H

#include <stdbool.h>

#include "runtimes.h"
#include "syncagent_native.h"

#define SLOTS 1024

/* What only the slot's own thread uses, its signal handlers included; the sums are read by others. */
struct own {
  _Atomic(uint32_t) busy; /* inside an outermost call: what is called meanwhile belongs to that one */
  _Atomic(uint64_t) unseen; /* the number of a wait of the main thread that the looker has come too late for */
  _Atomic(uint64_t) sums[FUNCTIONS][2];
};

extern struct syncagent_slot slots[SLOTS];
extern struct own owns[SLOTS];

uint64_t now_ns(void);

int slots_used(void); /* those from here on have never been taken */

/* The calling thread's slot, taken at the first use; NULL when all are taken. */
struct syncagent_slot *own_slot(void);

/* Frees the slots of threads that have ended, where no key's destructor does it. */
void free_slots_of_ended_threads(void);

void keep_wait(const struct syncagent_wait *wait);

uint64_t dropped_waits(void);
uint64_t threads_without_slot(void);

void empty_after_fork(void);     /* in the child: frees all slots but this thread's own, closes that one */
void empty_before_start(void);   /* what is larger, and only needed if the child starts */

#endif
