#define _GNU_SOURCE
#include "slots.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define RING 65536

_Static_assert(sizeof(struct syncagent_slot) == 128, "the layout is read by Python");
_Static_assert(sizeof(struct syncagent_wait) == 56, "the layout is read by Python");
_Static_assert(sizeof(_Atomic(uint64_t)) == 8 && ATOMIC_LLONG_LOCK_FREE == 2, "signal handlers take no locks");

struct syncagent_slot slots[SLOTS];
struct own owns[SLOTS];

/* Free slots: those that have never been taken, and a stack of the others. Its head is an index + 1 with a count of changes
   above, so that a head that has been taken off and put back meanwhile is distinguished from one that has not. */
static _Atomic(int) used;
static _Atomic(uint64_t) free_head;
static _Atomic(uint32_t) free_next[SLOTS];

/* This thread's slot; NOBODY: it has been counted as being without one. */
static __thread struct syncagent_slot *mine __attribute__((tls_model("initial-exec")));
#define NOBODY ((struct syncagent_slot *)1)

static pthread_key_t key;
/* glibc keeps the values of a thread's first 32 keys in the thread itself, and allocates memory for the others. */
#define KEYS_WITHOUT_MEMORY 32
static bool key_in_use;

static _Atomic(uint64_t) without_slot;

/* A cell's turn is 2 x lap where it is free for the writer of that lap, and 2 x lap + 1 where that one has written. */
static struct {
  _Atomic(uint64_t) turn;
  struct syncagent_wait wait;
} ring[RING];
static _Atomic(uint64_t) ring_written, ring_read, ring_dropped;

static _Atomic(bool) stale; /* the ring and the sums are those of the process that forked */

uint64_t now_ns(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

int slots_used(void) { return atomic_load_explicit(&used, memory_order_acquire); }
uint64_t dropped_waits(void) { return atomic_load_explicit(&ring_dropped, memory_order_relaxed); }
uint64_t threads_without_slot(void) { return atomic_load_explicit(&without_slot, memory_order_relaxed); }

static void give(uint32_t index) {
  uint64_t head = atomic_load_explicit(&free_head, memory_order_relaxed), changed;
  do {
    atomic_store_explicit(&free_next[index], (uint32_t)head, memory_order_relaxed);
    changed = ((head >> 32) + 1) << 32 | (index + 1);
  } while (!atomic_compare_exchange_weak_explicit(&free_head, &head, changed, memory_order_release, memory_order_relaxed));
}

static int take(void) {
  uint64_t head = atomic_load_explicit(&free_head, memory_order_acquire);
  while ((uint32_t)head != 0) {
    const uint32_t index = (uint32_t)head - 1;
    const uint64_t changed = ((head >> 32) + 1) << 32 | atomic_load_explicit(&free_next[index], memory_order_relaxed);
    if (atomic_compare_exchange_weak_explicit(&free_head, &head, changed, memory_order_acquire, memory_order_acquire))
      return (int)index;
  }
  int next = atomic_load_explicit(&used, memory_order_relaxed);
  while (next < SLOTS)
    if (atomic_compare_exchange_weak_explicit(&used, &next, next + 1, memory_order_release, memory_order_relaxed))
      return next;
  return -1;
}

static void free_slot(struct syncagent_slot *slot) {
  /* A thread that is cancelled inside a wait does not come back to the wrapper, only to thread_ends(). (A cleanup in the
     wrapper would need an unwinder of the compiler's in this library, and pthread_cancel unwinds with glibc's.) */
  if (atomic_exchange_explicit(&slot->start_ns, 0, memory_order_acq_rel) != 0)
    atomic_fetch_add_explicit(&ring_dropped, 1, memory_order_relaxed);
  atomic_store_explicit(&slot->named, 0, memory_order_relaxed);
  atomic_store_explicit(&slot->ident, 0, memory_order_relaxed);
  atomic_store_explicit(&slot->tid, 0, memory_order_release);
  atomic_store_explicit(&owns[slot - slots].busy, 0, memory_order_relaxed);
  give((uint32_t)(slot - slots));
}

static void thread_ends(void *slot) {
  mine = NULL; /* a later destructor may wait again, and then takes a slot anew; its end calls us again */
  free_slot(slot);
}

__attribute__((constructor)) static void make_key(void) {
  if (pthread_key_create(&key, thread_ends) != 0) return;
  key_in_use = key < KEYS_WITHOUT_MEMORY;
  if (!key_in_use) pthread_key_delete(key);
}

__attribute__((noinline)) static struct syncagent_slot *take_slot(void) {
  const int error = errno;
  const int index = take();
  struct syncagent_slot *none = mine, *slot = index < 0 ? NOBODY : &slots[index];
  /* One instruction, or on aarch64 as good as one: a signal handler of this thread may be taking a slot, too. */
  if (none > NOBODY ||
      !__atomic_compare_exchange_n(&mine, &none, slot, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
    if (index >= 0) give((uint32_t)index);
    slot = mine;
  } else if (index < 0) {
    if (none != NOBODY) atomic_fetch_add_explicit(&without_slot, 1, memory_order_relaxed);
  } else {
    atomic_store_explicit(&slot->ident, (uint64_t)pthread_self(), memory_order_relaxed);
    atomic_store_explicit(&slot->tid, (uint64_t)syscall(SYS_gettid), memory_order_release);
    if (key_in_use) pthread_setspecific(key, slot);
  }
  errno = error;
  return slot > NOBODY ? slot : NULL;
}

struct syncagent_slot *own_slot(void) {
  struct syncagent_slot *slot = mine;
  return __builtin_expect(slot > NOBODY, 1) ? slot : take_slot();
}

void free_slots_of_ended_threads(void) {
  if (key_in_use) return;
  const int end = slots_used();
  for (int i = 0; i < end; i++) {
    const uint64_t tid = atomic_load_explicit(&slots[i].tid, memory_order_acquire);
    if (tid != 0 && syscall(SYS_tgkill, getpid(), (pid_t)tid, 0) != 0 && errno == ESRCH) free_slot(&slots[i]);
  }
}

void keep_wait(const struct syncagent_wait *wait) {
  uint64_t position = atomic_load_explicit(&ring_written, memory_order_relaxed);
  for (;;) {
    const uint64_t free_turn = position / RING * 2;
    const uint64_t turn = atomic_load_explicit(&ring[position % RING].turn, memory_order_acquire);
    if (turn < free_turn) { /* not read since the last lap */
      atomic_fetch_add_explicit(&ring_dropped, 1, memory_order_relaxed);
      return;
    }
    if (turn > free_turn) {
      position = atomic_load_explicit(&ring_written, memory_order_relaxed);
    } else if (atomic_compare_exchange_weak_explicit(&ring_written, &position, position + 1, memory_order_relaxed,
                                                     memory_order_relaxed)) {
      ring[position % RING].wait = *wait;
      atomic_store_explicit(&ring[position % RING].turn, free_turn + 1, memory_order_release);
      return;
    }
  }
}

int syncagent_take(struct syncagent_wait *into, int most) {
  if (atomic_load_explicit(&stale, memory_order_acquire)) return 0;
  uint64_t position = atomic_load_explicit(&ring_read, memory_order_relaxed);
  int taken = 0;
  for (; taken < most; taken++, position++) {
    const uint64_t written_turn = position / RING * 2 + 1;
    if (atomic_load_explicit(&ring[position % RING].turn, memory_order_acquire) != written_turn) break;
    into[taken] = ring[position % RING].wait;
    atomic_store_explicit(&ring[position % RING].turn, written_turn + 1, memory_order_release);
  }
  atomic_store_explicit(&ring_read, position, memory_order_relaxed);
  return taken;
}

void syncagent_sums(uint64_t *into) {
  memset(into, 0, sizeof(uint64_t) * 2 * FUNCTIONS);
  const int end = atomic_load_explicit(&stale, memory_order_acquire) ? 0 : slots_used();
  for (int i = 0; i < end; i++)
    for (int f = 0; f < FUNCTIONS; f++)
      for (int k = 0; k < 2; k++) into[2 * f + k] += atomic_load_explicit(&owns[i].sums[f][k], memory_order_relaxed);
}

struct syncagent_slot *syncagent_own_slot(void) { return own_slot(); }
struct syncagent_slot *syncagent_slots(void) { return slots; }
int syncagent_slot_count(void) { return SLOTS; }

void empty_after_fork(void) {
  struct syncagent_slot *own = mine > NOBODY ? mine : NULL;
  mine = own;
  const int end = slots_used();
  atomic_store_explicit(&free_head, 0, memory_order_relaxed);
  for (int i = end; i-- > 0;) {
    struct syncagent_slot *slot = &slots[i];
    atomic_store_explicit(&slot->unnamed_ns, 0, memory_order_relaxed);
    atomic_store_explicit(&slot->unnamed_waits, 0, memory_order_relaxed);
    if (slot == own) continue;
    atomic_store_explicit(&slot->named_ns, 0, memory_order_relaxed);
    atomic_store_explicit(&slot->named_waits, 0, memory_order_relaxed);
    free_slot(slot);
  }
  if (own != NULL) { /* views of it stay right; what its thread is just naming goes on */
    atomic_store_explicit(&own->start_ns, 0, memory_order_relaxed);
    atomic_store_explicit(&own->tid, (uint64_t)syscall(SYS_gettid), memory_order_relaxed);
  }
  atomic_store_explicit(&without_slot, 0, memory_order_relaxed);
  atomic_store_explicit(&ring_dropped, 0, memory_order_relaxed);
  atomic_store_explicit(&stale, true, memory_order_release);
}

void empty_before_start(void) {
  if (!atomic_load_explicit(&stale, memory_order_acquire)) return;
  const int end = slots_used();
  for (int i = 0; i < end; i++)
    for (int f = 0; f < FUNCTIONS; f++)
      for (int k = 0; k < 2; k++) atomic_store_explicit(&owns[i].sums[f][k], 0, memory_order_relaxed);
  const uint64_t written = atomic_load_explicit(&ring_written, memory_order_relaxed);
  for (uint64_t i = 0; i < (written < RING ? written : RING); i++)
    atomic_store_explicit(&ring[i].turn, 0, memory_order_relaxed);
  atomic_store_explicit(&ring_written, 0, memory_order_relaxed);
  atomic_store_explicit(&ring_read, 0, memory_order_relaxed);
  atomic_store_explicit(&stale, false, memory_order_release);
}
