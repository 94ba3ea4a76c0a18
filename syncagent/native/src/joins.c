#define _GNU_SOURCE
#include "joins.h"

#include <dlfcn.h>
#include <errno.h>
#include <string.h>

#include "marks.h"
#include "slots.h"

#define PAIRS 2048
#define DEVICES 16

/* of cudaError_t, cudaStreamCaptureStatus and cudaStreamCaptureMode */
#define NOT_READY 600
#define CAPTURE_ELSEWHERE 906
#define NOT_CAPTURING 0
#define RELAXED 2

_Static_assert(sizeof(struct syncagent_join) == 24, "the layout is read by Python");

_Atomic(int) measuring;

/* Two events of one device, by one runtime; whoever has taken the pair off its stack, or out of the queue, owns it. */
static struct pair {
  void *before, *after, *context;
  uint64_t host_ns;
  uint32_t session, flags;
  int runtime, device;
} pairs[PAIRS];

/* Pairs that have never been used, and for each runtime and device a stack of those that are free: see slots.c. */
static _Atomic(int) used;
static _Atomic(uint64_t) free_heads[MOST_RUNTIMES][DEVICES];
static _Atomic(uint32_t) free_next[PAIRS];

/* Pairs with both events recorded, in order; there is room for all. A cell's turn is 2 x lap where it is free for the writer
   of that lap, and 2 x lap + 1 where that one has written. */
static struct {
  _Atomic(uint64_t) turn;
  int pair;
} queue[PAIRS];
static _Atomic(uint64_t) queue_written, queue_read;

static _Atomic(uint32_t) session; /* what was queued in an earlier one is not returned any more */
static _Atomic(uint32_t) life;    /* counts forks: a pair of the parent's is none of ours */
static _Atomic(bool) stale;       /* all of this is the parent's */

static _Atomic(uint64_t) measured, dropped;
static _Atomic(uint64_t) failure; /* where << 32 | what the function returned; measuring is off for good */

/* Of CUDA's driver; they make no context. */
static struct {
  _Atomic(bool) known;
  int (*get_current)(void **context);
  int (*push_current)(void *context);
  int (*pop_current)(void **context);
} driver;

static void fail(enum syncagent_failed where, int with) {
  uint64_t none = 0;
  atomic_compare_exchange_strong(&failure, &none, (uint64_t)where << 32 | (uint32_t)with);
  atomic_store_explicit(&measuring, 0, memory_order_relaxed);
}

/* An error of ours is not left for the program to find: there was none before. */
static bool succeeded(const struct questions *ask, enum syncagent_failed where, int result) {
  if (result == 0) return true;
  ask->get_last_error();
  fail(where, result);
  return false;
}

static void drop(void) { atomic_fetch_add_explicit(&dropped, 1, memory_order_relaxed); }

int measuring_runtime(void) {
  const int count = runtime_count();
  for (int r = 0; r < count; r++)
    if (questions[r].can_measure) return r;
  return -1;
}

/* ---- pairs ---- */

static void give(int pair) {
  _Atomic(uint64_t) *stack = &free_heads[pairs[pair].runtime][pairs[pair].device];
  uint64_t head = atomic_load_explicit(stack, memory_order_relaxed), changed;
  do {
    atomic_store_explicit(&free_next[pair], (uint32_t)head, memory_order_relaxed);
    changed = ((head >> 32) + 1) << 32 | (uint32_t)(pair + 1);
  } while (!atomic_compare_exchange_weak_explicit(stack, &head, changed, memory_order_release, memory_order_relaxed));
}

static int take_free(int runtime, int device) {
  _Atomic(uint64_t) *stack = &free_heads[runtime][device];
  uint64_t head = atomic_load_explicit(stack, memory_order_acquire);
  while ((uint32_t)head != 0) {
    const uint32_t pair = (uint32_t)head - 1;
    const uint64_t changed = ((head >> 32) + 1) << 32 | atomic_load_explicit(&free_next[pair], memory_order_relaxed);
    if (atomic_compare_exchange_weak_explicit(stack, &head, changed, memory_order_acquire, memory_order_acquire))
      return (int)pair;
  }
  return NO_PAIR;
}

/* A capture elsewhere in the process may forbid other threads to create and to ask for events, and would itself be broken by
   one that does, unless that thread says that it knows what it does. */
static bool relax(const struct questions *ask, int *mode) {
  *mode = RELAXED;
  return succeeded(ask, SYNCAGENT_FAILED_MODE, ask->exchange_capture_mode(mode));
}

static bool create_events(struct pair *pair, const struct questions *ask) {
  int mode;
  if (!relax(ask, &mode)) return false;
  const bool created = succeeded(ask, SYNCAGENT_FAILED_CREATE, ask->create_event(&pair->before, 0)) &&
                       succeeded(ask, SYNCAGENT_FAILED_CREATE, ask->create_event(&pair->after, 0));
  if (!succeeded(ask, SYNCAGENT_FAILED_MODE, ask->exchange_capture_mode(&mode)) || !created) return false;
  const int result = driver.get_current(&pair->context); /* the runtime has made it this thread's by now */
  if (result == 0 && pair->context != NULL) return true;
  fail(SYNCAGENT_FAILED_CONTEXT, result);
  return false;
}

static int take_pair(int runtime, int device) {
  const int pair = take_free(runtime, device);
  if (pair != NO_PAIR) return pair;
  int next = atomic_load_explicit(&used, memory_order_relaxed);
  while (next < PAIRS && !atomic_compare_exchange_weak_explicit(&used, &next, next + 1, memory_order_relaxed,
                                                                memory_order_relaxed)) {
  }
  if (next >= PAIRS) {
    drop();
    return NO_PAIR;
  }
  pairs[next] = (struct pair){.runtime = runtime, .device = device};
  return create_events(&pairs[next], &questions[runtime]) ? next : NO_PAIR; /* what cannot be created never is again */
}

/* ---- on the threads of the program ---- */

static bool may_record(const struct questions *ask, void *stream) {
  int capturing = NOT_CAPTURING;
  const int result = ask->is_capturing(stream, &capturing);
  if (result == CAPTURE_ELSEWHERE) { /* of another stream, that the default stream would have to wait for */
    ask->get_last_error();
    return false;
  }
  return succeeded(ask, SYNCAGENT_FAILED_CAPTURE, result) && capturing == NOT_CAPTURING;
}

static _Atomic(uint64_t) waits_at_last_join;

static bool hosts_have_waited(void) {
  uint64_t waits = 0;
  const int count = slots_used();
  for (int s = 0; s < count; s++)
    waits += atomic_load_explicit(&slots[s].named_waits, memory_order_relaxed) +
             atomic_load_explicit(&slots[s].unnamed_waits, memory_order_relaxed);
  return atomic_exchange_explicit(&waits_at_last_join, waits, memory_order_relaxed) != waits;
}

/* Whether the join before is over. It may be taken, and its pair be used anew, at the same time: then it was. */
static bool has_caught_up(const struct questions *ask) {
  const uint64_t written = atomic_load_explicit(&queue_written, memory_order_relaxed), last = written - 1;
  if (written == 0) return true;
  const uint64_t turn = atomic_load_explicit(&queue[last % PAIRS].turn, memory_order_acquire);
  if (turn != last / PAIRS * 2 + 1) return turn > last / PAIRS * 2; /* taken, or just being written */
  int mode;
  if (!relax(ask, &mode)) return false;
  const int result = ask->query_event(pairs[queue[last % PAIRS].pair].after);
  if (result == NOT_READY) ask->get_last_error();
  const bool answered = result == NOT_READY || succeeded(ask, SYNCAGENT_FAILED_QUERY, result);
  return succeeded(ask, SYNCAGENT_FAILED_MODE, ask->exchange_capture_mode(&mode)) && answered && result == 0;
}

void join_begins(struct join *join, int runtime, void *stream, uint32_t flags) {
  join->pair = NO_PAIR;
  if (runtime < 0 || !atomic_load_explicit(&measuring, memory_order_acquire) || !questions[runtime].can_measure ||
      !atomic_load_explicit(&driver.known, memory_order_acquire))
    return;
  const int error = errno;
  const uint32_t this_life = atomic_load_explicit(&life, memory_order_relaxed);
  const struct questions *ask = &questions[runtime];
  int device = -1, pair = NO_PAIR;
  if (ask->peek_at_last_error() != 0) { /* one that the program has not fetched yet must stay as it is */
    drop();
  } else if (succeeded(ask, SYNCAGENT_FAILED_DEVICE, ask->get_device(&device)) && may_record(ask, stream)) {
    if (device >= 0 && device < DEVICES) pair = take_pair(runtime, device);
    else drop();
  }
  if (pair != NO_PAIR) {
    struct pair *taken = &pairs[pair];
    taken->host_ns = now_ns();
    taken->flags = flags | (has_caught_up(ask) ? SYNCAGENT_CAUGHT_UP : 0) | (hosts_have_waited() ? SYNCAGENT_HOST_WAITED : 0);
    taken->session = atomic_load_explicit(&session, memory_order_relaxed);
    *join = (struct join){.pair = pair, .life = this_life, .stream = stream};
    if (!succeeded(ask, SYNCAGENT_FAILED_RECORD, ask->record_event(taken->before, stream))) {
      join->pair = NO_PAIR;
      give(pair);
    }
  }
  errno = error;
}

static void put_in_queue(int pair) {
  uint64_t position = atomic_load_explicit(&queue_written, memory_order_relaxed);
  for (;;) {
    const uint64_t free_turn = position / PAIRS * 2;
    const uint64_t turn = atomic_load_explicit(&queue[position % PAIRS].turn, memory_order_acquire);
    if (turn != free_turn) { /* somebody else has just taken this place: there is one for each pair */
      position = atomic_load_explicit(&queue_written, memory_order_relaxed);
    } else if (atomic_compare_exchange_weak_explicit(&queue_written, &position, position + 1, memory_order_relaxed,
                                                     memory_order_relaxed)) {
      queue[position % PAIRS].pair = pair;
      atomic_store_explicit(&queue[position % PAIRS].turn, free_turn + 1, memory_order_release);
      return;
    }
  }
}

void join_ends(struct join *join, int result) {
  const int pair = join->pair;
  join->pair = NO_PAIR;
  if (join->life != atomic_load_explicit(&life, memory_order_acquire)) return; /* a handler has forked in between */
  const int error = errno;
  const struct questions *ask = &questions[pairs[pair].runtime];
  /* The call itself may have made the stream part of a capture. */
  if (result == 0 && atomic_load_explicit(&measuring, memory_order_acquire) && may_record(ask, join->stream) &&
      succeeded(ask, SYNCAGENT_FAILED_RECORD, ask->record_event(pairs[pair].after, join->stream))) {
    atomic_fetch_add_explicit(&measured, 1, memory_order_relaxed);
    put_in_queue(pair);
  } else {
    give(pair);
  }
  errno = error;
}

void device_is_reset(void) {
  if (atomic_load_explicit(&used, memory_order_relaxed) != 0) fail(SYNCAGENT_FAILED_RESET, 0);
}

/* ---- on the thread that takes them ---- */

/* What this thread has changed for its questions. */
struct asking {
  void *context;
  const struct questions *ask;
  int mode;
};

static void leave(struct asking *asking) {
  void *ours;
  if (asking->context == NULL) return;
  succeeded(asking->ask, SYNCAGENT_FAILED_MODE, asking->ask->exchange_capture_mode(&asking->mode));
  if (driver.pop_current(&ours) != 0) fail(SYNCAGENT_FAILED_CONTEXT, 0);
  asking->context = NULL;
}

/* A question of a thread without a context would make one, on device 0, of hundreds of megabytes. */
static bool enter(struct asking *asking, const struct pair *pair) {
  const struct questions *ask = &questions[pair->runtime];
  if (asking->context == pair->context && asking->ask == ask) return true;
  leave(asking);
  const int result = driver.push_current(pair->context);
  if (result != 0) {
    fail(SYNCAGENT_FAILED_CONTEXT, result);
    return false;
  }
  *asking = (struct asking){.context = pair->context, .ask = ask};
  if (relax(ask, &asking->mode)) return true;
  void *ours;
  driver.pop_current(&ours);
  asking->context = NULL;
  return false;
}

/* Whether the join is over; then `waited_ns` is set. */
static bool is_over(const struct pair *pair, const struct questions *ask, uint64_t *waited_ns) {
  float ms = 0;
  const int result = ask->query_event(pair->after);
  if (result == NOT_READY) ask->get_last_error();
  if (result == NOT_READY || !succeeded(ask, SYNCAGENT_FAILED_QUERY, result)) return false;
  if (!succeeded(ask, SYNCAGENT_FAILED_ELAPSED, ask->elapsed_ms(&ms, pair->before, pair->after))) return false;
  *waited_ns = ms > 0 ? (uint64_t)((double)ms * 1e6 + 0.5) : 0;
  return true;
}

int syncagent_take_joins(struct syncagent_join *into, int most) {
  struct asking asking = {0};
  uint64_t position = atomic_load_explicit(&queue_read, memory_order_relaxed);
  const uint32_t now = atomic_load_explicit(&session, memory_order_relaxed);
  int taken = 0;
  while (taken < most && !stale && atomic_load_explicit(&failure, memory_order_relaxed) == 0) {
    const uint64_t written_turn = position / PAIRS * 2 + 1;
    if (atomic_load_explicit(&queue[position % PAIRS].turn, memory_order_acquire) != written_turn) break;
    const int number = queue[position % PAIRS].pair;
    const struct pair *pair = &pairs[number];
    if (pair->session == now) {
      uint64_t waited_ns;
      if (!enter(&asking, pair) || !is_over(pair, asking.ask, &waited_ns)) break;
      into[taken++] = (struct syncagent_join){
          .host_ns = pair->host_ns, .waited_ns = waited_ns, .device = (uint32_t)pair->device, .flags = pair->flags};
    }
    atomic_store_explicit(&queue[position % PAIRS].turn, written_turn + 1, memory_order_release);
    atomic_store_explicit(&queue_read, ++position, memory_order_relaxed);
    give(number);
  }
  leave(&asking);
  return taken;
}

/* ---- on and off ---- */

void seek_driver(void) {
  if (atomic_load_explicit(&driver.known, memory_order_relaxed)) return;
  void *library = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_NOLOAD); /* kept for good */
  if (library == NULL) return;
  *(void **)&driver.get_current = dlsym(library, "cuCtxGetCurrent");
  *(void **)&driver.push_current = dlsym(library, "cuCtxPushCurrent_v2");
  *(void **)&driver.pop_current = dlsym(library, "cuCtxPopCurrent_v2");
  if (driver.get_current != NULL && driver.push_current != NULL && driver.pop_current != NULL)
    atomic_store_explicit(&driver.known, true, memory_order_release);
  else
    fail(SYNCAGENT_FAILED_DRIVER, 0);
}

static void forget_pairs(void) {
  memset((void *)free_heads, 0, sizeof free_heads);
  for (int i = 0; i < PAIRS; i++) atomic_store_explicit(&queue[i].turn, 0, memory_order_relaxed);
  atomic_store_explicit(&queue_written, 0, memory_order_relaxed);
  atomic_store_explicit(&queue_read, 0, memory_order_relaxed);
  atomic_store_explicit(&used, 0, memory_order_relaxed);
  atomic_store_explicit(&failure, 0, memory_order_relaxed);
}

void start_joins(void) {
  if (atomic_load_explicit(&measuring, memory_order_relaxed)) return;
  if (stale) forget_pairs();
  stale = false;
  forget_marks();
  seek_driver();
  atomic_store_explicit(&measured, 0, memory_order_relaxed);
  atomic_store_explicit(&dropped, 0, memory_order_relaxed);
  atomic_fetch_add_explicit(&session, 1, memory_order_relaxed);
  if (atomic_load_explicit(&failure, memory_order_relaxed) == 0)
    atomic_store_explicit(&measuring, 1, memory_order_release);
}

void stop_joins(void) { atomic_store_explicit(&measuring, 0, memory_order_relaxed); }

void forget_joins_after_fork(void) {
  stop_joins();
  atomic_fetch_add_explicit(&life, 1, memory_order_release);
  atomic_store_explicit(&measured, 0, memory_order_relaxed);
  atomic_store_explicit(&dropped, 0, memory_order_relaxed);
  stale = true;
}

struct join_counts join_counts(void) {
  const uint64_t failed = stale ? 0 : atomic_load_explicit(&failure, memory_order_relaxed);
  return (struct join_counts){
      .state = failed != 0                                                    ? SYNCAGENT_JOINS_FAILED
               : !atomic_load_explicit(&measuring, memory_order_relaxed)      ? SYNCAGENT_JOINS_OFF
               : !atomic_load_explicit(&driver.known, memory_order_relaxed)   ? SYNCAGENT_JOINS_WITHOUT_DRIVER
                                                                              : SYNCAGENT_JOINS_ON,
      .measured = atomic_load_explicit(&measured, memory_order_relaxed),
      .dropped = atomic_load_explicit(&dropped, memory_order_relaxed) + streams_without_mark(),
      .failed_at = failed >> 32,
      .failed_with = failed & 0xffffffff,
  };
}
