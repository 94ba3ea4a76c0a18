/* Calls the stand-in for CUDA's runtime on behalf of the simulated device, as torch's libraries call the real one: by
 * way of this library's global offset table, where the agent finds the calls. */
#define _GNU_SOURCE
#include "standin.h"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

/* syncagent/simulate/standin.py has the same numbers. */
enum {
  STREAM_SYNCHRONIZE, EVENT_SYNCHRONIZE, DEVICE_SYNCHRONIZE,
  COPY_PINNED, COPY_STAGED, COPY_PAGEABLE, COPY_PAGEABLE_ASYNC,
  FREE, MALLOC, HOST_ALLOC, MEMCPY,
};

struct call {
  int32_t function, direction;
  uint64_t bytes;
};

static gate idle;

static int copy(const struct call *call, void *host, gate *stream) {
  void *to = call->direction == HOST_TO_DEVICE ? DEVICE_MEMORY : host;
  void *from = call->direction == HOST_TO_DEVICE ? host : DEVICE_MEMORY;
  return cudaMemcpyAsync(to, from, call->bytes, call->direction, stream);
}

static int without_a_stream(const struct call *call) {
  void *memory = DEVICE_MEMORY;
  switch (call->function) {
    case FREE: return cudaFree(memory);
    case MALLOC: return cudaMalloc(&memory, call->bytes);
    case HOST_ALLOC: return cudaHostAlloc(&memory, call->bytes, 0);
    case MEMCPY: return cudaMemcpy(memory, memory, call->bytes, call->direction);
    default: return cudaDeviceSynchronize();
  }
}

/* Sleep until the gate is open, inside the function or functions that this call consists of on a GPU. Not 0: a signal
 * came first. */
EXPORTED int syncagent_standin_wait(gate *left, const struct call *call) {
  int result;
  switch (call->function) {
    case STREAM_SYNCHRONIZE: return cudaStreamSynchronize(left);
    case EVENT_SYNCHRONIZE: return cudaEventSynchronize(left);
    case COPY_PINNED: result = copy(call, PINNED_MEMORY, &idle); break;
    case COPY_STAGED: result = copy(call, PAGEABLE_MEMORY, &idle); break;
    case COPY_PAGEABLE: result = copy(call, PAGEABLE_MEMORY, left); break;
    case COPY_PAGEABLE_ASYNC: return copy(call, PAGEABLE_MEMORY, left);
    default:
      syncagent_standin_use(left);
      result = without_a_stream(call);
      syncagent_standin_use(NULL);
      return result;
  }
  return result ? result : cudaStreamSynchronize(left);
}

/* A part of what is waited for is done. The caller keeps the gate until this has returned. */
EXPORTED void syncagent_standin_open(gate *left) {
  if (atomic_fetch_sub_explicit(left, 1, memory_order_acq_rel) == 1)
    syscall(SYS_futex, left, FUTEX_WAKE_PRIVATE, INT32_MAX, NULL, NULL, 0);
}
