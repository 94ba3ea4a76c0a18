#define _GNU_SOURCE
#include "watcher.h"

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "library.h"
#include "slots.h"
#include "wrappers.h"

#define LOOKING_NS 200000
#define RESTING_NS 5000000
#define LOOKER_IS_LATE_NS 1000000

/* Words to sleep on; both only grow. */
static _Atomic(uint32_t) bell;  /* for the looker: there are waits to look at, or it is over */
static _Atomic(uint32_t) nudge; /* for the watcher: something has been set */

static _Atomic(int) wanted;
static _Atomic(uint64_t) look_after = 100000;

static _Atomic(bool) stopping;
static bool running;
static pthread_t watcher;

static _Atomic(uint64_t) told[SLOTS]; /* the number of the last wait of that slot that the looker was given */
static _Atomic(bool) away;            /* the looker has taken waits and is not back */
static _Atomic(uint64_t) told_count;

static _Atomic(uintptr_t) add_pending;
static _Atomic(uintptr_t) pending_callback;
static _Atomic(uint64_t) pending_ident;
static _Atomic(bool) pending_out;

static void sleep_on(_Atomic(uint32_t) *word, uint32_t value, int64_t ns) {
  const struct timespec time = {.tv_sec = ns / 1000000000, .tv_nsec = ns % 1000000000};
  syscall(SYS_futex, word, FUTEX_WAIT | FUTEX_PRIVATE_FLAG, value, &time, NULL, 0);
}

static void wake(_Atomic(uint32_t) *word) {
  atomic_fetch_add_explicit(word, 1, memory_order_acq_rel);
  syscall(SYS_futex, word, FUTEX_WAKE | FUTEX_PRIVATE_FLAG, INT_MAX, NULL, NULL, 0);
}

uint64_t looks_told(void) { return atomic_load_explicit(&told_count, memory_order_relaxed); }

/* The number of that slot's wait if it is open, unnamed and old enough; else 0. */
static uint64_t open_wait(const struct syncagent_slot *slot, uint64_t now) {
  const uint64_t start = atomic_load_explicit(&slot->start_ns, memory_order_acquire);
  if (start == 0 || start > now || now - start < atomic_load_explicit(&look_after, memory_order_relaxed)) return 0;
  if (atomic_load_explicit(&slot->named, memory_order_relaxed) != 0) return 0;
  const uint64_t number = atomic_load_explicit(&slot->number, memory_order_acquire);
  return atomic_load_explicit(&slot->start_ns, memory_order_acquire) == start ? number : 0;
}

static int look(uint32_t *into_slots, uint64_t *numbers, int most) {
  const int end = slots_used();
  const uint64_t now = now_ns();
  int count = 0;
  for (int i = 0; i < end && count < most; i++) {
    const uint64_t number = open_wait(&slots[i], now);
    if (number == 0 || number == atomic_load_explicit(&told[i], memory_order_relaxed)) continue;
    atomic_store_explicit(&told[i], number, memory_order_release);
    into_slots[count] = (uint32_t)i;
    numbers[count++] = number;
  }
  return count;
}

int syncagent_next_looks(uint32_t *into_slots, uint64_t *numbers, int most, int timeout_ms) {
  const uint64_t until = now_ns() + (timeout_ms > 0 ? (uint64_t)timeout_ms : 0) * 1000000u, session = current_session();
  atomic_store_explicit(&away, false, memory_order_release);
  for (;;) {
    const uint32_t rung = atomic_load_explicit(&bell, memory_order_acquire);
    if (session == 0 || current_session() != session) return -1;
    if (atomic_load_explicit(&wanted, memory_order_relaxed)) {
      atomic_store_explicit(&away, true, memory_order_release); /* before `told`: the watcher reads them the other way round */
      const int count = look(into_slots, numbers, most);
      if (count > 0) {
        atomic_fetch_add_explicit(&told_count, (uint64_t)count, memory_order_relaxed);
        return count;
      }
      atomic_store_explicit(&away, false, memory_order_release);
    }
    const uint64_t now = now_ns();
    if (now >= until) return 0;
    sleep_on(&bell, rung, (int64_t)(until - now));
  }
}

static int run_pending(void *number) {
  atomic_store_explicit(&pending_out, false, memory_order_release);
  const uintptr_t callback = atomic_load_explicit(&pending_callback, memory_order_acquire);
  if (callback == 0) return 0; /* stopped since */
  return ((int (*)(void *))callback)(number);
}

/* Up to 3.12, a call that another thread adds comes only when the main thread next takes notice of something: lines later. */
void call_back_soon(uint64_t number) {
  const uintptr_t add = atomic_load_explicit(&add_pending, memory_order_acquire);
  if (add == 0 || atomic_exchange_explicit(&pending_out, true, memory_order_acq_rel)) return;
  const int error = errno;
  if (((int (*)(int (*)(void *), void *))add)(run_pending, (void *)(uintptr_t)number) != 0)
    atomic_store_explicit(&pending_out, false, memory_order_release); /* Python's queue is full */
  errno = error;
}

/* A wait of the main thread of which the looker has been told. */
struct candidate {
  int slot;
  uint64_t number, rung_ns;
};

static void see_to(struct candidate *candidate, uint64_t now) {
  if (candidate->number == 0) return;
  const bool open = open_wait(&slots[candidate->slot], now) == candidate->number;
  const bool seen = atomic_load_explicit(&told[candidate->slot], memory_order_acquire) == candidate->number &&
                    !atomic_load_explicit(&away, memory_order_acquire);
  if (open && !seen && now - candidate->rung_ns < LOOKER_IS_LATE_NS) return;
  if (open && !seen) atomic_store_explicit(&owns[candidate->slot].unseen, candidate->number, memory_order_release);
  candidate->number = 0;
}

static void *watch(void *nothing) {
  static uint64_t rung[SLOTS]; /* of one watcher at a time */
  struct candidate candidate = {0};
  while (!atomic_load_explicit(&stopping, memory_order_acquire)) {
    const uint32_t nudged = atomic_load_explicit(&nudge, memory_order_acquire);
    const bool looking = atomic_load_explicit(&wanted, memory_order_relaxed);
    if (looking) {
      const int end = slots_used();
      const uint64_t now = now_ns(), main_ident = atomic_load_explicit(&pending_ident, memory_order_relaxed);
      bool ring = false;
      for (int i = 0; i < end; i++) {
        const uint64_t number = open_wait(&slots[i], now);
        if (number == 0 || number == rung[i]) continue;
        rung[i] = number;
        ring = true;
        if (main_ident != 0 && atomic_load_explicit(&slots[i].ident, memory_order_relaxed) == main_ident)
          candidate = (struct candidate){.slot = i, .number = number, .rung_ns = now};
      }
      if (ring) wake(&bell);
      see_to(&candidate, now);
    }
    if (atomic_load_explicit(&stopping, memory_order_acquire)) break;
    sleep_on(&nudge, nudged, looking ? LOOKING_NS : RESTING_NS);
  }
  return nothing;
}

static void start_watching(void) { /* the library's lock is held */
  if (running) return;
  sigset_t all, before;
  pthread_attr_t attributes;
  atomic_store_explicit(&stopping, false, memory_order_release);
  if (pthread_attr_init(&attributes) != 0) return;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before); /* signals are for the program's own threads */
  running = pthread_create(&watcher, &attributes, watch, NULL) == 0; /* else nobody is told */
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  pthread_attr_destroy(&attributes);
  if (running) pthread_setname_np(watcher, "syncagent-watch");
}

void syncagent_set_looks(int now_wanted, uint64_t look_after_ns) {
  atomic_store_explicit(&look_after, look_after_ns, memory_order_relaxed);
  if (now_wanted && !enter_library()) return;
  if (now_wanted) {
    if (current_session() != 0) {
      start_watching();
      atomic_store_explicit(&wanted, 1, memory_order_relaxed);
    }
    leave_library();
  } else {
    atomic_store_explicit(&wanted, 0, memory_order_relaxed);
  }
  wake(&nudge);
}

void syncagent_pending(void *add_pending_call, int (*callback)(void *), uint64_t main_ident) {
  atomic_store_explicit(&add_pending, 0, memory_order_release);
  atomic_store_explicit(&pending_callback, (uintptr_t)callback, memory_order_release);
  atomic_store_explicit(&pending_ident, main_ident, memory_order_relaxed);
  atomic_store_explicit(&add_pending, (uintptr_t)add_pending_call, memory_order_release);
}

void stop_watching(void) {
  atomic_store_explicit(&wanted, 0, memory_order_relaxed);
  atomic_store_explicit(&stopping, true, memory_order_release);
  wake(&nudge);
  wake(&bell);
  if (running) pthread_join(watcher, NULL);
  running = false;
  syncagent_pending(NULL, NULL, 0);
}

void forget_watcher_after_fork(void) {
  running = false;
  atomic_store_explicit(&wanted, 0, memory_order_relaxed);
  atomic_store_explicit(&told_count, 0, memory_order_relaxed);
  syncagent_pending(NULL, NULL, 0);
  atomic_store_explicit(&pending_out, false, memory_order_relaxed);
}
