#define _GNU_SOURCE
#include "wrappers.h"

#include <errno.h>

#include "joins.h"
#include "slots.h"
#include "watcher.h"

_Atomic(int) live;
_Atomic(uint64_t) threshold = 100000;

enum sort { SORT_WAITS, SORT_MAY_WAIT, SORT_TAKES_TIME, SORT_QUEUES };

#define DEVICE_TO_DEVICE 3
#define AT_ONCE_NS 20000
#define QUEUEING_NS 25000 /* an asynchronous copy takes 5 to 20 us to be queued (an H200) */

/* struct cudaMemcpy3DParms */
struct copy_3d_side {
  void *array;
  size_t x, y, z;
  void *pointer;
  size_t pitch, row, rows;
};
struct copy_3d {
  struct copy_3d_side from, to;
  size_t width, height, depth;
  int kind;
};

static inline uint64_t bytes_3d(const struct copy_3d *copy) {
  return copy != NULL ? (uint64_t)copy->width * copy->height * copy->depth : 0;
}

/* One call of a wrapper, on its stack. */
struct call {
  struct syncagent_slot *slot; /* NULL: nothing to note (inside another call, or no slot was left) */
  uint64_t start_ns, bytes;
  const void *to, *from;
  enum sort sort;
  int runtime, function, direction, result;
};

__attribute__((noinline)) static void call_begins(struct call *call) {
  struct syncagent_slot *slot = own_slot();
  if (slot == NULL) return;
  struct own *own = &owns[slot - slots];
  if (atomic_load_explicit(&own->busy, memory_order_relaxed)) return;
  atomic_store_explicit(&own->busy, 1, memory_order_relaxed);
  atomic_signal_fence(memory_order_seq_cst); /* a signal handler from here on is part of this call */
  atomic_store_explicit(&slot->function, (uint64_t)call->function, memory_order_relaxed);
  const uint64_t number = atomic_load_explicit(&slot->number, memory_order_relaxed) + 1;
  atomic_store_explicit(&slot->number, number, memory_order_release);
  call->slot = slot;
  call->start_ns = now_ns();
  if (call->start_ns - atomic_load_explicit(&slot->ended_ns, memory_order_relaxed) > AT_ONCE_NS)
    atomic_store_explicit(&slot->first, number, memory_order_relaxed);
  atomic_store_explicit(&slot->start_ns, call->start_ns, memory_order_release);
}

static inline void add(_Atomic(uint64_t) *sum, uint64_t more) { /* of one writer */
  atomic_store_explicit(sum, atomic_load_explicit(sum, memory_order_relaxed) + more, memory_order_relaxed);
}

static bool is_pageable(const struct questions *ask, const void *pointer) {
  union {
    int type; /* the first field of struct cudaPointerAttributes; 0: the runtime does not know this memory */
    unsigned char room[256];
  } attributes = {.room = {0}};
  if (ask->pointer_attributes(&attributes, pointer) == 0) return attributes.type == 0;
  if (ask->get_last_error != NULL) ask->get_last_error(); /* there was none before: see below */
  return true;
}

/* An asynchronous copy waits for the device where one side is pageable, and else only for room in the launch queue. */
__attribute__((noinline)) static bool waited_for_room(const struct call *call) {
  const struct questions *ask = &questions[call->runtime];
  if (call->result != 0 || ask->pointer_attributes == NULL) return false;
  const int error = errno;
  /* An error that the program has not fetched yet must stay as it is. */
  const bool room = (ask->peek_at_last_error == NULL || ask->peek_at_last_error() == 0) && !is_pageable(ask, call->to) &&
                    (call->from == call->to || !is_pageable(ask, call->from));
  errno = error;
  return room;
}

static void note(struct call *call, struct syncagent_slot *slot, uint64_t end_ns) {
  const uint64_t ns = end_ns - call->start_ns;
  const bool named = atomic_load_explicit(&slot->named, memory_order_relaxed) != 0;
  const uint64_t least_ns = atomic_load_explicit(&threshold, memory_order_relaxed);
  const bool long_enough = ns >= (call->sort == SORT_TAKES_TIME ? 10 * least_ns : least_ns);
  if (!named) {
    _Atomic(uint64_t) *sums = owns[slot - slots].sums[call->function];
    add(&sums[0], 1);
    add(&sums[1], ns);
  }
  const bool waited = call->sort == SORT_WAITS || long_enough;
  if (named) { /* the caller knows that it waits: then what a copy or a free takes is part of it, but not queueing a copy */
    const bool part = call->sort == SORT_MAY_WAIT || (call->sort == SORT_QUEUES && ns >= QUEUEING_NS);
    if (waited || part) add(&slot->named_ns, ns);
    if (waited) add(&slot->named_waits, 1);
    return;
  }
  if (!waited) return;
  const bool room = call->sort == SORT_QUEUES && waited_for_room(call);
  if (!room) {
    add(&slot->unnamed_ns, ns);
    add(&slot->unnamed_waits, 1);
  }
  if (!long_enough) return;
  keep_wait(&(struct syncagent_wait){
      .number = atomic_load_explicit(&slot->number, memory_order_relaxed),
      .start_ns = call->start_ns,
      .end_ns = end_ns,
      .bytes = call->bytes,
      .slot = (uint32_t)(slot - slots),
      .function = (uint32_t)call->function,
      .tid = (uint32_t)atomic_load_explicit(&slot->tid, memory_order_relaxed),
      .direction = call->direction,
      .flags = room ? SYNCAGENT_QUEUE_FULL : 0,
  });
}

__attribute__((noinline)) static void call_ends(struct call *call) {
  struct syncagent_slot *slot = call->slot;
  if (slot == NULL) return;
  const uint64_t end_ns = now_ns();
  /* Where a signal handler has forked during the call, the child has closed it. */
  const bool open = atomic_load_explicit(&slot->start_ns, memory_order_relaxed) == call->start_ns;
  atomic_store_explicit(&slot->ended_ns, end_ns, memory_order_relaxed);
  atomic_store_explicit(&slot->start_ns, 0, memory_order_release);
  if (open) note(call, slot, end_ns);
  struct own *own = &owns[slot - slots];
  const uint64_t unseen = atomic_load_explicit(&own->unseen, memory_order_acquire);
  if (unseen != 0 && unseen == atomic_load_explicit(&slot->number, memory_order_relaxed)) call_back_soon(unseen);
  atomic_signal_fence(memory_order_seq_cst);
  atomic_store_explicit(&own->busy, 0, memory_order_relaxed);
}

/* -fexceptions gives these frames the unwind tables by which pthread_cancel gets through them. */
#define WRAPPER_(RUNTIME, NAME, SORT, PARAMETERS, ARGUMENTS, BYTES, DIRECTION, TO, FROM)                                \
  static int NAME##_of_##RUNTIME PARAMETERS {                                                                           \
    int(*original) PARAMETERS =                                                                                         \
        (int(*) PARAMETERS)atomic_load_explicit(&originals[RUNTIME][NUMBER_##NAME], memory_order_relaxed);              \
    if (!atomic_load_explicit(&live, memory_order_relaxed)) return original ARGUMENTS;                                  \
    struct call call = {.bytes = (BYTES), .to = (TO), .from = (FROM), .sort = SORT, .runtime = RUNTIME,                 \
                        .function = NUMBER_##NAME, .direction = (DIRECTION)};                                           \
    if (NUMBER_##NAME == NUMBER_cudaDeviceReset) device_is_reset();                                                     \
    call_begins(&call);                                                                                                 \
    call.result = original ARGUMENTS;                                                                                   \
    call_ends(&call);                                                                                                   \
    return call.result;                                                                                                 \
  }
#define WRAPPER(...) WRAPPER_(__VA_ARGS__)
#define FUNCTION(...) WRAPPER(RUNTIME, __VA_ARGS__)

#define RUNTIME 0
#include "functions.h"
#undef RUNTIME
#define RUNTIME 1
#include "functions.h"
#undef RUNTIME
#define RUNTIME 2
#include "functions.h"
#undef RUNTIME
#define RUNTIME 3
#include "functions.h"
#undef RUNTIME
#undef FUNCTION
_Static_assert(MOST_RUNTIMES == 4, "a set of wrappers for each");

#define FUNCTION(NAME, ...) (uintptr_t)JOIN(NAME##_of_, RUNTIME),
#define JOIN(LEFT, RIGHT) JOIN_(LEFT, RIGHT)
#define JOIN_(LEFT, RIGHT) LEFT##RIGHT
const uintptr_t wrappers[MOST_RUNTIMES][FUNCTIONS] = {
#define RUNTIME 0
    {
#include "functions.h"
    },
#undef RUNTIME
#define RUNTIME 1
    {
#include "functions.h"
    },
#undef RUNTIME
#define RUNTIME 2
    {
#include "functions.h"
    },
#undef RUNTIME
#define RUNTIME 3
    {
#include "functions.h"
    },
#undef RUNTIME
};
