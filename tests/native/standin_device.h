/* A GPU for the tests that does nothing: each of its streams knows until when it is busy, on a clock that the test sets. */
#ifndef STANDIN_DEVICE_H
#define STANDIN_DEVICE_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

enum event_call { NO_CALL, CREATE, RECORD, QUERY, ELAPSED, CAPTURE, MODE, DEVICE };

/* Of one runtime. */
struct device {
  _Atomic(uint64_t) now_ns;         /* events at or before it are reached */
  _Atomic(int) device;              /* what cudaGetDevice returns */
  _Atomic(int) fails, fails_with;   /* enum event_call, and its result */
  _Atomic(uintptr_t) capturing;     /* a stream that is being captured, + 1 */
  _Atomic(int) captures_elsewhere;  /* of a stream for which the default stream would have to wait */
  _Atomic(uintptr_t) captured_by_waiting; /* a stream that is captured from its next wait on, + 1 */
  /* Events with times recorded, created, and recorded while their stream was captured; the agent's alone are such. */
  _Atomic(int) recorded, created, captured;
  _Atomic(int) asked_strictly;      /* ... created or asked for by a thread that is not in relaxed mode */
  _Atomic(int) contexts;            /* that calls on threads without one have made */
  _Atomic(uint64_t) others_ns;      /* when the other ranks have come to each collective */
  _Atomic(uint64_t) takes_ns;       /* how long a collective takes from then on */
  _Atomic(int) nccl_result;
  _Atomic(uintptr_t) inside;        /* void (*)(void), called by the next cudaStreamWaitEvent */
};

#ifndef NO_PROTOTYPES
/* CUDA's driver */
int cuCtxGetCurrent(void **context);
int cuCtxPushCurrent_v2(void *context);
int cuCtxPopCurrent_v2(void **context);

/* CUDA's runtime */
int cudaEventCreateWithFlags(void **event, unsigned flags);
int cudaEventDestroy(void *event);
int cudaEventRecord(void *event, void *stream);
int cudaEventRecordWithFlags(void *event, void *stream, unsigned flags);
int cudaStreamWaitEvent(void *stream, void *event, unsigned flags);
int cudaEventQuery(void *event);
int cudaEventElapsedTime(float *ms, void *from, void *to);
int cudaStreamIsCapturing(void *stream, int *status);
int cudaThreadExchangeStreamCaptureMode(int *mode);
int cudaPeekAtLastError(void);
int cudaGetLastError(void);
int cudaDeviceReset(void);
extern struct device device;
void device_works(void *stream, uint64_t ns);           /* kernels */
void device_waits(void *stream, uint64_t ns);           /* at least until then */
uint64_t device_busy_until(void *stream);

/* NCCL */
int ncclGroupStart(void);
int ncclGroupEnd(void);
int ncclAllReduce(const void *from, void *to, size_t count, int type, int op, void *comm, void *stream);
int ncclAllGather(const void *from, void *to, size_t count, int type, void *comm, void *stream);
int ncclSend(const void *from, size_t count, int type, int peer, void *comm, void *stream);
int ncclRecv(void *to, size_t count, int type, int peer, void *comm, void *stream);
#endif

#endif
