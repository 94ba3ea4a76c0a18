/* What the library offers: how long threads wait inside the CUDA runtime.

   It points the GOT entries of loaded objects for the runtime's blocking functions at wrappers that read the clock before
   and after. Times are CLOCK_MONOTONIC in nanoseconds, which is Python's time.perf_counter_ns on Linux. */
#ifndef SYNCAGENT_NATIVE_H
#define SYNCAGENT_NATIVE_H

#include <stdatomic.h>
#include <stdint.h>

#define SYNCAGENT_ABI 2
#define SYNCAGENT_API __attribute__((visibility("default")))

/* One for each thread that has waited or asked for one. A thread's slot is written by that thread alone; sums and `number`
   only ever grow, also when the slot goes to another thread. Reading a wait from another thread: start_ns, then number,
   then start_ns again; the wait is that number if start_ns has not changed. */
struct syncagent_slot {
  _Alignas(64) _Atomic(uint64_t) start_ns; /* begin of the outermost open wait; 0: none */
  _Atomic(uint64_t) number;                /* outermost waits begun here, the open one included */
  _Atomic(uint64_t) named_ns;              /* sum of the calls while `named` was not 0, but for copies that were only queued */
  _Atomic(uint64_t) named_waits;           /* how many of them were waits; see "What counts as a wait" */
  _Atomic(uint64_t) named;                 /* written by the program on the same thread; not 0: a sensor names the call */
  _Atomic(uint64_t) ident;                 /* pthread_self(), which is Python's threading.get_ident() */
  _Atomic(uint64_t) tid;                   /* gettid(); 0 while the slot is free */
  _Atomic(uint64_t) function;              /* number of the function of the open wait */
  _Atomic(uint64_t) unnamed_ns;            /* sum of the waits while `named` was 0, without those of SYNCAGENT_QUEUE_FULL */
  _Atomic(uint64_t) unnamed_waits;
  _Atomic(uint64_t) ended_ns;              /* when the last outermost call ended */
  _Atomic(uint64_t) first;                 /* number of the first of the calls that have followed one another at once */
  uint64_t reserved[4];
};

/* What counts as a wait: every synchronize call, and any other call from the threshold on; from ten times the threshold on
   where the function takes long by itself (allocations, the first use of a kernel). Shorter ones of these only add to the sums
   of their function. */

/* An ended wait of at least the threshold that no sensor named. */
struct syncagent_wait {
  uint64_t number, start_ns, end_ns, bytes;
  uint32_t slot, function, tid;
  int32_t direction; /* cudaMemcpyKind, 0 to 4; -1 where there is none */
  uint32_t flags, reserved;
};

#define SYNCAGENT_QUEUE_FULL 1 /* an asynchronous copy that involves no pageable memory: it waited for room in the queue */

struct syncagent_status {
  uint64_t live;
  uint64_t runtimes;   /* libcudarts that are known */
  uint64_t objects;    /* loaded objects with entries of ours */
  uint64_t entries;    /* that are ours */
  uint64_t foreign;    /* point to neither a known runtime nor us: another tool's, or a fifth runtime's */
  uint64_t read_only;  /* could not be made writable */
  uint64_t unresolved; /* not bound yet, or in an object that is being loaded: a later walk sees to them */
  uint64_t threads_without_slot, dropped, looks_told;
  uint64_t hooks;         /* entries for functions of streams, events and collectives that are ours; not among `entries` */
  uint64_t hooks_missed;  /* that could not be made ours, or are another tool's */
  uint64_t joins;         /* enum syncagent_joins */
  uint64_t joins_measured, joins_dropped; /* dropped: no events were left, or the program had an error to fetch */
  uint64_t failed_at;     /* enum syncagent_failed */
  uint64_t failed_with;   /* what that function returned */
};

SYNCAGENT_API int syncagent_abi(void);

/* Finds the runtimes and patches all objects. Returns how many entries are ours now. A second start is a walk. */
SYNCAGENT_API int syncagent_start(uint64_t threshold_ns);

/* Looks for new objects and runtimes, and for entries that have been bound since; cheap while nothing has been loaded.
   Returns how many entries became ours by it, -1 while stopped. To be called without the GIL. */
SYNCAGENT_API int syncagent_walk(int force);

/* Restores what is mapped and still ours; the wrappers pass calls through afterwards, as pointers to them may be anywhere. */
SYNCAGENT_API void syncagent_stop(void);

SYNCAGENT_API void syncagent_status(struct syncagent_status *into);

/* This thread's slot, taken at the first use; NULL when all are taken. */
SYNCAGENT_API struct syncagent_slot *syncagent_own_slot(void);
SYNCAGENT_API struct syncagent_slot *syncagent_slots(void);
SYNCAGENT_API int syncagent_slot_count(void);

/* Moves ended waits into that array; one reader at a time. Returns how many. */
SYNCAGENT_API int syncagent_take(struct syncagent_wait *into, int most);

SYNCAGENT_API int syncagent_function_count(void);
SYNCAGENT_API const char *syncagent_function(int number);

/* For each function its number of unnamed outermost calls and their nanoseconds, those below the threshold included:
   2 x function_count values. */
SYNCAGENT_API void syncagent_sums(uint64_t *into);

/* Blocks until outermost unnamed waits have been open for `look_after_ns`, and returns each (slot, number) once; 0 after
   timeout_ms, -1 once stopped. One thread at a time, without the GIL. */
SYNCAGENT_API int syncagent_next_looks(uint32_t *slots, uint64_t *numbers, int most, int timeout_ms);

/* A thread of the library looks at the open waits every 200 us while looks are wanted, every 5 ms while not. */
SYNCAGENT_API void syncagent_set_looks(int wanted, uint64_t look_after_ns);

/* Where a wait of the main thread is still open 1 ms after whoever calls next_looks was told, and that thread is not back
   (the main thread holds the GIL), the main thread calls add_pending_call(..., number of the wait) as soon as the wait is
   over, one at a time; Python then calls `callback` with that number on it. To be said anew after each start. */
SYNCAGENT_API void syncagent_pending(void *add_pending_call, int (*callback)(void *), uint64_t main_ident);

/* ---- how long the GPU's compute stream stands still for collectives ---- */

/* A wait of the compute stream for a collective, measured by two timing events around it: either the stream waited for an
   event that comes after a collective, or NCCL was called on the compute stream itself (SYNCAGENT_DIRECT). */
struct syncagent_join {
  uint64_t host_ns;   /* when the program asked for it */
  uint64_t waited_ns; /* how long the stream stood still, on the GPU's clock */
  uint32_t device, flags;
};

#define SYNCAGENT_DIRECT 1
/* The stream had already passed the wait before this one when the program asked for this: the program is less than one wait
   ahead of the GPU, which would have had to wait for it anyway. */
#define SYNCAGENT_CAUGHT_UP 2
/* A thread has waited for the GPU since the wait before this one. */
#define SYNCAGENT_HOST_WAITED 4

enum syncagent_joins {
  SYNCAGENT_JOINS_OFF,
  SYNCAGENT_JOINS_ON,
  SYNCAGENT_JOINS_WITHOUT_DRIVER, /* on, but the program has not used the GPU by the last walk */
  SYNCAGENT_JOINS_FAILED,         /* off for good */
};

/* What of ours has failed. */
enum syncagent_failed {
  SYNCAGENT_FAILED_NOTHING,
  SYNCAGENT_FAILED_DRIVER,  /* libcuda lacks a function */
  SYNCAGENT_FAILED_CONTEXT, /* cuCtxGetCurrent, cuCtxPushCurrent, cuCtxPopCurrent */
  SYNCAGENT_FAILED_DEVICE,  /* cudaGetDevice */
  SYNCAGENT_FAILED_CAPTURE, /* cudaStreamIsCapturing */
  SYNCAGENT_FAILED_MODE,    /* cudaThreadExchangeStreamCaptureMode */
  SYNCAGENT_FAILED_CREATE,  /* cudaEventCreateWithFlags */
  SYNCAGENT_FAILED_RECORD,  /* cudaEventRecord */
  SYNCAGENT_FAILED_QUERY,   /* cudaEventQuery */
  SYNCAGENT_FAILED_ELAPSED, /* cudaEventElapsedTime */
  SYNCAGENT_FAILED_RESET,   /* the program has reset the device, and our events with it */
};

/* Has NCCL's functions and those of streams and events patched as well, or restored. Off until it is called, and again after
   a stop. Returns how many of these entries are ours; -1 while stopped. To be called without the GIL. */
SYNCAGENT_API int syncagent_measure_joins(int wanted);

/* The stream whose waits are measured, by its handle; 0, as in the beginning, is the default stream. */
SYNCAGENT_API void syncagent_compute_stream(uint64_t stream);

/* Moves joins that are over into that array, in the order in which they were made; waits for none. One reader at a time,
   without the GIL. Returns how many. */
SYNCAGENT_API int syncagent_take_joins(struct syncagent_join *into, int most);

#endif
