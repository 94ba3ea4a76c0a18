#define _GNU_SOURCE
#include "hooks.h"

#include <stdbool.h>
#include <stddef.h>

#include "joins.h"
#include "marks.h"
#include "syncagent_native.h"

#define LAST_DEFAULT_STREAM 2 /* NULL, cudaStreamLegacy, cudaStreamPerThread */

_Atomic(int) hooks_wanted;

static _Atomic(int) seen; /* a collective, while joins are measured: until then there is nothing to note */
static _Atomic(uintptr_t) compute_stream;
static _Atomic(uint32_t) starts;

/* NCCL begins what is called within a group at the outermost end of it. */
static __thread struct {
  uint32_t start;
  int depth;
  struct join join;
} group __attribute__((tls_model("initial-exec")));

void start_hooks(void) {
  if (atomic_exchange_explicit(&hooks_wanted, 1, memory_order_relaxed)) return;
  atomic_fetch_add_explicit(&starts, 1, memory_order_relaxed);
}

void stop_hooks(void) {
  atomic_store_explicit(&hooks_wanted, 0, memory_order_relaxed);
  atomic_store_explicit(&seen, 0, memory_order_relaxed);
}

void set_compute_stream(uint64_t stream) {
  const uintptr_t told = stream > LAST_DEFAULT_STREAM ? (uintptr_t)stream : 0;
  atomic_store_explicit(&compute_stream, told, memory_order_relaxed);
}

static bool computes(const void *stream) {
  const uintptr_t told = atomic_load_explicit(&compute_stream, memory_order_relaxed);
  return told == 0 ? (uintptr_t)stream <= LAST_DEFAULT_STREAM : (uintptr_t)stream == told;
}

/* Once joins are no longer measured, there is nothing to note until the next start. */
static bool over(void) {
  if (atomic_load_explicit(&measuring, memory_order_relaxed)) return false;
  atomic_store_explicit(&seen, 0, memory_order_relaxed);
  return true;
}

__attribute__((noinline)) static void recorded(const void *event, const void *stream) {
  if (over()) return;
  if (computes(stream)) event_loses_its_mark(event);
  else event_is_recorded(event, stream);
}

__attribute__((noinline)) static void wait_begins(struct join *join, int runtime, void *stream, void *event) {
  const uint64_t mark = over() ? 0 : mark_of(event);
  if (mark == 0) return;
  if (computes(stream)) {
    mark_is_reached(event, mark);
    join_begins(join, runtime, stream, 0);
  } else {
    stream_is_behind(stream);
  }
}

/* The group that this thread is in; one from before the last start may have ended unseen. */
static int *group_depth(void) {
  const uint32_t start = atomic_load_explicit(&starts, memory_order_relaxed);
  if (group.start != start) {
    group.start = start;
    group.depth = 0;
    group.join.pair = NO_PAIR;
  }
  return &group.depth;
}

static void group_begins(void) {
  if ((*group_depth())++ == 0) group.join.pair = NO_PAIR;
}

/* Moves the join of the outermost group to the caller. */
static void group_ends(struct join *join) {
  int *depth = group_depth();
  if (*depth == 0 || --*depth > 0) return;
  *join = group.join;
  group.join.pair = NO_PAIR;
}

__attribute__((noinline)) static void collective_begins(struct join *join, void *stream) {
  if (!atomic_load_explicit(&seen, memory_order_relaxed)) atomic_store_explicit(&seen, 1, memory_order_relaxed);
  if (!computes(stream)) {
    stream_is_behind(stream);
  } else if (*group_depth() == 0) {
    join_begins(join, measuring_runtime(), stream, SYNCAGENT_DIRECT);
  } else if (group.join.pair == NO_PAIR) {
    join_begins(&group.join, measuring_runtime(), stream, SYNCAGENT_DIRECT);
  }
}

/* `on`: while it is 0, the call is passed on as it is. */
#define HOOK(LIBRARY, NAME, PARAMETERS, ARGUMENTS, ON, BEFORE, AFTER)                                                \
  static int NAME##_of_##LIBRARY PARAMETERS {                                                                        \
    int(*original) PARAMETERS =                                                                                      \
        (int(*) PARAMETERS)atomic_load_explicit(&originals[LIBRARY][NUMBER_##NAME], memory_order_relaxed);           \
    if (!atomic_load_explicit(&(ON), memory_order_relaxed)) return original ARGUMENTS;                               \
    struct join join = {.pair = NO_PAIR};                                                                            \
    BEFORE;                                                                                                          \
    const int result = original ARGUMENTS;                                                                           \
    AFTER;                                                                                                           \
    if (join.pair != NO_PAIR) join_ends(&join, result);                                                              \
    return result;                                                                                                   \
  }
#define NOTHING (void)0
#define RECORD(LIBRARY, NAME, PARAMETERS, ARGUMENTS) \
  HOOK(LIBRARY, NAME, PARAMETERS, ARGUMENTS, seen, NOTHING, if (result == 0) recorded(event, stream))
#define STREAM_WAIT(LIBRARY, NAME, PARAMETERS, ARGUMENTS) \
  HOOK(LIBRARY, NAME, PARAMETERS, ARGUMENTS, seen, wait_begins(&join, LIBRARY, stream, event), NOTHING)
#define COLLECTIVE_CALL(LIBRARY, NAME, PARAMETERS, ARGUMENTS) \
  HOOK(LIBRARY, NAME, PARAMETERS, ARGUMENTS, measuring, collective_begins(&join, stream), NOTHING)
#define GROUP_START(LIBRARY, NAME, PARAMETERS, ARGUMENTS) \
  HOOK(LIBRARY, NAME, PARAMETERS, ARGUMENTS, measuring, group_begins(), NOTHING)
#define GROUP_END(LIBRARY, NAME, PARAMETERS, ARGUMENTS) \
  HOOK(LIBRARY, NAME, PARAMETERS, ARGUMENTS, measuring, group_ends(&join), NOTHING)

#define FUNCTION(NAME, SORT, PARAMETERS, ARGUMENTS) SORT_IN(LIBRARY, SORT, NAME, PARAMETERS, ARGUMENTS)
#define SORT_IN(LIBRARY, SORT, NAME, PARAMETERS, ARGUMENTS) SORT(LIBRARY, NAME, PARAMETERS, ARGUMENTS)

#define LIBRARY 0
#include "event_functions.h"
#undef LIBRARY
#define LIBRARY 1
#include "event_functions.h"
#undef LIBRARY
#define LIBRARY 2
#include "event_functions.h"
#undef LIBRARY
#define LIBRARY 3
#include "event_functions.h"
#undef LIBRARY
#define LIBRARY 4
#include "nccl_functions.h"
#undef LIBRARY
#define LIBRARY 5
#include "nccl_functions.h"
#undef LIBRARY
#undef FUNCTION
_Static_assert(MOST_RUNTIMES == 4 && MOST_NCCLS == 2, "a set of hooks for each");

#define FUNCTION(NAME, ...) [NUMBER_##NAME - FUNCTIONS] = (uintptr_t)JOIN(NAME##_of_, LIBRARY),
#define JOIN(LEFT, RIGHT) JOIN_(LEFT, RIGHT)
#define JOIN_(LEFT, RIGHT) LEFT##RIGHT
const uintptr_t hooks[LIBRARIES][ALL_FUNCTIONS - FUNCTIONS] = {
#define LIBRARY 0
    {
#include "event_functions.h"
    },
#undef LIBRARY
#define LIBRARY 1
    {
#include "event_functions.h"
    },
#undef LIBRARY
#define LIBRARY 2
    {
#include "event_functions.h"
    },
#undef LIBRARY
#define LIBRARY 3
    {
#include "event_functions.h"
    },
#undef LIBRARY
#define LIBRARY 4
    {
#include "nccl_functions.h"
    },
#undef LIBRARY
#define LIBRARY 5
    {
#include "nccl_functions.h"
    },
#undef LIBRARY
};
