/* How long the compute stream stands still for collectives, by timing events of our own around what it waits for.

   Nothing here takes a lock, or memory but for the events, which are created when they are first needed and kept. Events are
   recorded by the program's own threads, which have the right device, and read by whoever takes the joins. */
#ifndef SYNCAGENT_JOINS_H
#define SYNCAGENT_JOINS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "runtimes.h"

/* One join that is being measured, on the stack of the thread that makes it. */
struct join {
  int pair; /* of events; NO_PAIR: nothing is measured */
  uint32_t life;
  void *stream;
};
#define NO_PAIR (-1)

/* Not 0: joins are measured. */
extern _Atomic(int) measuring;

/* Records the first event. The join has NO_PAIR where nothing is to be measured. */
void join_begins(struct join *join, int runtime, void *stream, uint32_t flags);

/* Records the second one, if what the program called in between has returned `result` 0; only for a join with a pair. */
void join_ends(struct join *join, int result);

/* The runtime by which events are recorded around a call of NCCL's, which says nothing of runtimes; -1: none can. */
int measuring_runtime(void);

/* The program resets the device: our events are gone. */
void device_is_reset(void);

/* While the library's lock is held. */
void start_joins(void);
void stop_joins(void);
void seek_driver(void); /* CUDA's driver, which comes when the program first uses the GPU */

void forget_joins_after_fork(void);

struct join_counts {
  uint64_t state, measured, dropped, failed_at, failed_with;
};
struct join_counts join_counts(void);

#endif
