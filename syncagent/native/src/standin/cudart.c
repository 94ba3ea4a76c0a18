/* Stands in for CUDA's runtime: its functions that make the host wait, each of which sleeps as long as the simulated
 * device is at work. A signal ends the sleep with cudaErrorNotReady: Python runs its handlers before it waits on. */
#define _GNU_SOURCE
#include "standin.h"

#include <errno.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Of the thread's own memory: a thread that waits for the first time may do so where no memory is left. */
static __thread gate *device __attribute__((tls_model("initial-exec")));

EXPORTED void syncagent_standin_use(gate *busy) { device = busy; }

static int sleep_until_open(gate *left) {
  uint32_t seen;
  while (left && (seen = atomic_load_explicit(left, memory_order_acquire)))
    if (syscall(SYS_futex, left, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0) == -1 && errno == EINTR) return NOT_READY;
  return SUCCESS;
}

EXPORTED int cudaStreamSynchronize(void *stream) { return sleep_until_open(stream); }

EXPORTED int cudaEventSynchronize(void *event) { return sleep_until_open(event); }

EXPORTED int cudaDeviceSynchronize(void) { return sleep_until_open(device); }

/* Asynchronous or not: it is handed a stream that is at work where CUDA would not come back before the copy is done. */
EXPORTED int cudaMemcpyAsync(void *to, const void *from, size_t bytes, int direction, void *stream) {
  (void)to, (void)from, (void)bytes, (void)direction;
  return sleep_until_open(stream);
}

EXPORTED int cudaMemcpy(void *to, const void *from, size_t bytes, int direction) {
  (void)to, (void)from, (void)bytes, (void)direction;
  return sleep_until_open(device);
}

EXPORTED int cudaFree(void *memory) {
  (void)memory;
  return sleep_until_open(device);
}

EXPORTED int cudaMalloc(void **memory, size_t bytes) {
  (void)bytes;
  *memory = DEVICE_MEMORY;
  return sleep_until_open(device);
}

EXPORTED int cudaHostAlloc(void **memory, size_t bytes, unsigned flags) {
  (void)bytes, (void)flags;
  *memory = PINNED_MEMORY;
  return sleep_until_open(device);
}

EXPORTED int cudaPointerGetAttributes(struct attributes *into, const void *memory) {
  const int type = memory == DEVICE_MEMORY ? DEVICE : memory == PINNED_MEMORY ? HOST : UNREGISTERED;
  *into = (struct attributes){.type = type, .device = type == UNREGISTERED ? -2 : 0};
  return SUCCESS;
}
