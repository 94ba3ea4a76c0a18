#define _GNU_SOURCE
#include "library.h"

#include <errno.h>
#include <pthread.h>
#include <time.h>

#include "hooks.h"
#include "joins.h"
#include "patch.h"
#include "slots.h"
#include "watcher.h"
#include "wrappers.h"

static pthread_mutex_t lock;
static _Atomic(uint64_t) session;
static uint64_t last_session;

static struct {
  _Atomic(uint64_t) objects, entries, foreign, read_only, unresolved, hooks, hooks_missed;
} status;

bool enter_library(void) { return pthread_mutex_lock(&lock) == 0; }
void leave_library(void) { pthread_mutex_unlock(&lock); }
uint64_t current_session(void) { return atomic_load_explicit(&session, memory_order_acquire); }

static void make_lock(void) {
  pthread_mutexattr_t attributes;
  pthread_mutexattr_init(&attributes);
  pthread_mutexattr_settype(&attributes, PTHREAD_MUTEX_ERRORCHECK);
  pthread_mutex_init(&lock, &attributes);
  pthread_mutexattr_destroy(&attributes);
}

static void keep(const struct seen *seen) {
  atomic_store_explicit(&status.objects, seen->objects, memory_order_relaxed);
  atomic_store_explicit(&status.entries, seen->entries, memory_order_relaxed);
  atomic_store_explicit(&status.foreign, seen->foreign, memory_order_relaxed);
  atomic_store_explicit(&status.read_only, seen->read_only, memory_order_relaxed);
  atomic_store_explicit(&status.unresolved, seen->unresolved, memory_order_relaxed);
  atomic_store_explicit(&status.hooks, seen->hooks, memory_order_relaxed);
  atomic_store_explicit(&status.hooks_missed, seen->hooks_missed, memory_order_relaxed);
}

/* A child that is forked during a walk would have the loader's lock taken for good. The wait has an end, because a library
   that forks while it is being loaded holds another of the loader's locks, for which a walk may be waiting. */
static bool forking_inside;

static void before_fork(void) {
  struct timespec until;
  clock_gettime(CLOCK_REALTIME, &until);
  until.tv_sec++;
  const bool inside = pthread_mutex_timedlock(&lock, &until) == 0;
  if (inside) forking_inside = true;
}

static void after_fork_in_parent(void) {
  if (!forking_inside) return;
  forking_inside = false;
  leave_library();
}

static void after_fork_in_child(void) {
  forking_inside = false;
  make_lock();
  atomic_store_explicit(&live, 0, memory_order_relaxed);
  atomic_store_explicit(&session, 0, memory_order_release);
  keep(&(struct seen){0});
  stop_hooks();
  forget_joins_after_fork();
  forget_watcher_after_fork();
  empty_after_fork();
}

__attribute__((constructor)) static void load(void) {
  make_lock();
  pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);
}

int syncagent_abi(void) { return SYNCAGENT_ABI; }
int syncagent_function_count(void) { return FUNCTIONS; }
const char *syncagent_function(int number) { return number >= 0 && number < FUNCTIONS ? function_names[number] : NULL; }

int syncagent_start(uint64_t threshold_ns) {
  struct seen seen;
  if (!enter_library()) return -1;
  empty_before_start();
  atomic_store_explicit(&threshold, threshold_ns, memory_order_relaxed);
  if (current_session() == 0) atomic_store_explicit(&session, ++last_session, memory_order_release);
  atomic_store_explicit(&live, 1, memory_order_relaxed);
  patch_entries(true, &seen);
  keep(&seen);
  leave_library();
  return (int)seen.entries;
}

int syncagent_walk(int force) {
  struct seen seen;
  int patched = -1;
  if (!enter_library()) return -1;
  if (current_session() != 0) {
    patched = patch_entries(force != 0, &seen);
    keep(&seen);
    if (atomic_load_explicit(&hooks_wanted, memory_order_relaxed)) seek_driver();
    free_slots_of_ended_threads();
  }
  leave_library();
  return patched;
}

void syncagent_stop(void) {
  struct seen seen;
  if (!enter_library()) return;
  if (current_session() != 0) {
    atomic_store_explicit(&live, 0, memory_order_relaxed);
    atomic_store_explicit(&session, 0, memory_order_release);
    stop_joins();
    stop_hooks();
    restore_entries(&seen);
    keep(&seen);
    stop_watching();
  }
  leave_library();
}

int syncagent_measure_joins(int wanted) {
  struct seen seen = {0};
  int ours = -1;
  if (!enter_library()) return -1;
  if (current_session() != 0) {
    if (wanted) {
      start_joins();
      start_hooks();
    } else {
      stop_joins();
      stop_hooks();
    }
    patch_entries(false, &seen);
    keep(&seen);
    ours = (int)seen.hooks;
  }
  leave_library();
  return ours;
}

void syncagent_compute_stream(uint64_t stream) { set_compute_stream(stream); }

void syncagent_status(struct syncagent_status *into) {
  const struct join_counts joins = join_counts();
  *into = (struct syncagent_status){
      .live = current_session() != 0,
      .runtimes = (uint64_t)runtime_count(),
      .objects = atomic_load_explicit(&status.objects, memory_order_relaxed),
      .entries = atomic_load_explicit(&status.entries, memory_order_relaxed),
      .foreign = atomic_load_explicit(&status.foreign, memory_order_relaxed),
      .read_only = atomic_load_explicit(&status.read_only, memory_order_relaxed),
      .unresolved = atomic_load_explicit(&status.unresolved, memory_order_relaxed),
      .threads_without_slot = threads_without_slot(),
      .dropped = dropped_waits(),
      .looks_told = looks_told(),
      .hooks = atomic_load_explicit(&status.hooks, memory_order_relaxed),
      .hooks_missed = atomic_load_explicit(&status.hooks_missed, memory_order_relaxed),
      .joins = joins.state,
      .joins_measured = joins.measured,
      .joins_dropped = joins.dropped,
      .failed_at = joins.failed_at,
      .failed_with = joins.failed_with,
  };
}
