/* Times the CUDA runtime calls that CUPTI is asked to watch, from enter to exit, without ever entering Python.

   Built at test time by driver.py: cc -O2 -shared -fPIC.  CUPTI's few declarations are repeated here, so that neither
   its headers nor its library are needed to build.  */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

typedef struct { /* CUpti_CallbackData */
    int site;    /* 0 enter, 1 exit */
    const char *function_name;
    const void *function_params;
    void *function_return;
    const char *symbol_name;
    void *context;
    uint32_t context_uid;
    uint64_t *correlation_data; /* the same 8 bytes at enter and exit of one call: ours to use */
    uint32_t correlation_id;
} callback_data;

typedef void (*callback)(void *user, int domain, uint32_t cbid, const void *data);
typedef int (*subscribe_t)(void **subscriber, callback, void *user);
typedef int (*unsubscribe_t)(void *subscriber);
typedef int (*enable_t)(uint32_t enable, void *subscriber, int domain, uint32_t cbid);
typedef int (*enable_domain_t)(uint32_t enable, void *subscriber, int domain);
typedef int (*name_t)(int domain, uint32_t cbid, const char **name);

typedef struct {
    uint64_t begin_ns, end_ns;
    uint32_t cbid, thread;
} call_record; /* what take() gives */

typedef struct {
    call_record call;
    _Atomic uint64_t ready; /* its number + 1, once it is written */
} slot;

enum { CAPACITY = 1 << 20, MARGIN = 1024, NAMES = 4096 };

static slot *ring;
static _Atomic uint64_t head, tail, lost;
static void *subscriber;
static unsubscribe_t unsubscribe;
static name_t name_of;
static int watched;                         /* the domain: 1 the driver's calls, 2 the runtime's */
static const char *_Atomic names[NAMES]; /* as the callbacks gave them: without the version */
static _Thread_local uint32_t thread_id;

static uint64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void called(void *user, int domain, uint32_t cbid, const void *data) {
    const callback_data *call = data;
    (void)user;
    if (domain != watched || !call->correlation_data) return;
    if (call->site == 0) {
        if (cbid < NAMES) atomic_store_explicit(&names[cbid], call->function_name, memory_order_relaxed);
        *call->correlation_data = now();
        return;
    }
    uint64_t end = now();
    uint64_t begin = *call->correlation_data;
    if (!begin) return; /* it was entered before the watch began */
    if (!thread_id) thread_id = (uint32_t)syscall(SYS_gettid);
    if (atomic_load(&head) - atomic_load(&tail) >= CAPACITY - MARGIN) {
        atomic_fetch_add(&lost, 1);
        return;
    }
    uint64_t number = atomic_fetch_add(&head, 1);
    slot *mine = &ring[number % CAPACITY];
    mine->call = (call_record){begin, end, cbid, thread_id};
    atomic_store_explicit(&mine->ready, number + 1, memory_order_release);
}

/* Watches the calls of a domain that have these numbers; all of its calls where none is given.
   Returns CUPTI's result of the first call that failed, 0 for none; below 0 for a library that does not load. */
int shim_start(const char *library, int domain, const uint32_t *cbids, int count) {
    void *handle = dlopen(library, RTLD_NOW);
    if (!handle) return -1;
    subscribe_t subscribe = (subscribe_t)dlsym(handle, "cuptiSubscribe");
    enable_t enable = (enable_t)dlsym(handle, "cuptiEnableCallback");
    enable_domain_t enable_domain = (enable_domain_t)dlsym(handle, "cuptiEnableDomain");
    unsubscribe = (unsubscribe_t)dlsym(handle, "cuptiUnsubscribe");
    name_of = (name_t)dlsym(handle, "cuptiGetCallbackName");
    if (!subscribe || !enable || !enable_domain || !unsubscribe) return -2;
    if (!ring && !(ring = calloc(CAPACITY, sizeof(slot)))) return -3;
    watched = domain;
    int result = subscribe(&subscriber, called, NULL);
    if (!result && !count) result = enable_domain(1, subscriber, domain);
    for (int i = 0; !result && i < count; i++) result = enable(1, subscriber, domain, cbids[i]);
    return result;
}

/* The name of a call with its version, such as cudaMemcpyAsync_ptsz_v7000; NULL where CUPTI knows none. */
const char *shim_name(uint32_t cbid) {
    const char *name = NULL;
    if (name_of && !name_of(watched, cbid, &name) && name) return name;
    return cbid < NAMES ? atomic_load_explicit(&names[cbid], memory_order_relaxed) : NULL;
}

void shim_stop(void) {
    if (subscriber) unsubscribe(subscriber);
    subscriber = NULL;
}

/* Moves what was seen into a buffer, oldest first, and returns how many. */
long shim_take(call_record *out, long most) {
    long count = 0;
    uint64_t number = atomic_load(&tail);
    while (count < most && number < atomic_load(&head)) {
        slot *next = &ring[number % CAPACITY];
        if (atomic_load_explicit(&next->ready, memory_order_acquire) != number + 1) break;
        out[count++] = next->call;
        atomic_store(&tail, ++number);
    }
    return count;
}

unsigned long shim_lost(void) { return (unsigned long)atomic_load(&lost); }
