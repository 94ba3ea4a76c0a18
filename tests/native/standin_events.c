/* What a libcudart for the tests has for streams and events. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>

#include "standin_device.h"

#define STREAMS 64
#define RELAXED 2
#define NOT_READY 600
#define CAPTURE_ELSEWHERE 906
#define WITHOUT_TIMING 2

struct device device;

struct event {
  _Atomic(uint64_t) ns;
  unsigned flags;
};

/* Of the streams 0, 16, 32 and so on. */
static _Atomic(uint64_t) busy_until[STREAMS];
static __thread int last_error, mode;

static _Atomic(uint64_t) *busy(void *stream) { return &busy_until[(uintptr_t)stream / 16 % STREAMS]; }
uint64_t device_busy_until(void *stream) { return *busy(stream); }
void device_works(void *stream, uint64_t ns) { *busy(stream) += ns; }
void device_waits(void *stream, uint64_t ns) {
  if (*busy(stream) < ns) *busy(stream) = ns;
}

/* What every call does: a thread that has no context gets one. */
static int begin(enum event_call call) {
  void *context;
  errno = EDOM;
  cuCtxGetCurrent(&context);
  if (context == NULL) {
    device.contexts++;
    cuCtxPushCurrent_v2(&device);
  }
  if (call != NO_CALL && device.fails == (int)call) return last_error = device.fails_with;
  return 0;
}

static bool is_captured(void *stream) { return device.capturing == (uintptr_t)stream + 1; }

int cudaEventCreateWithFlags(void **event, unsigned flags) {
  const int result = begin(flags & WITHOUT_TIMING ? NO_CALL : CREATE);
  if (mode != RELAXED && !(flags & WITHOUT_TIMING)) device.asked_strictly++;
  if (result != 0) return result;
  if (!(flags & WITHOUT_TIMING)) device.created++;
  struct event *made = calloc(1, sizeof *made);
  made->flags = flags;
  *event = made;
  return 0;
}

int cudaEventDestroy(void *event) {
  free(event);
  return begin(NO_CALL);
}

int cudaEventRecord(void *event, void *stream) {
  const int result = begin(((struct event *)event)->flags & WITHOUT_TIMING ? NO_CALL : RECORD);
  if (result != 0) return result;
  if (!(((struct event *)event)->flags & WITHOUT_TIMING)) {
    device.recorded++;
    device.captured += is_captured(stream);
  }
  ((struct event *)event)->ns = *busy(stream);
  return 0;
}

int cudaEventRecordWithFlags(void *event, void *stream, unsigned flags) { return (void)flags, cudaEventRecord(event, stream); }

int cudaStreamWaitEvent(void *stream, void *event, unsigned flags) {
  (void)flags;
  begin(NO_CALL);
  void (*inside)(void) = (void (*)(void))atomic_exchange(&device.inside, 0);
  if (inside != NULL) inside();
  if (device.captured_by_waiting == (uintptr_t)stream + 1) device.capturing = device.captured_by_waiting;
  device_waits(stream, ((struct event *)event)->ns);
  return 0;
}

int cudaEventQuery(void *event) {
  const int result = begin(QUERY);
  if (mode != RELAXED) device.asked_strictly++;
  if (result != 0) return result;
  return ((struct event *)event)->ns <= device.now_ns ? 0 : (last_error = NOT_READY);
}

int cudaEventElapsedTime(float *ms, void *from, void *to) {
  const int result = begin(ELAPSED);
  if (result != 0) return result;
  if ((((struct event *)from)->flags | ((struct event *)to)->flags) & WITHOUT_TIMING) return last_error = 400;
  *ms = (float)((double)(((struct event *)to)->ns - ((struct event *)from)->ns) / 1e6);
  return 0;
}

#ifndef WITHOUT_CAPTURES /* as before CUDA 10 */
int cudaStreamIsCapturing(void *stream, int *status) {
  const int result = begin(CAPTURE);
  if (result != 0) return result;
  if (stream == NULL && device.captures_elsewhere) return last_error = CAPTURE_ELSEWHERE;
  *status = is_captured(stream);
  return 0;
}
#endif

int cudaThreadExchangeStreamCaptureMode(int *exchanged) {
  const int result = begin(MODE), before = mode;
  if (result != 0) return result;
  mode = *exchanged;
  *exchanged = before;
  return 0;
}

int cudaDeviceReset(void) { return begin(NO_CALL); }
int event_error(void);
int event_error(void) { return last_error; }
int take_event_error(void);
int take_event_error(void) {
  const int error = last_error;
  last_error = 0;
  return error;
}
int device_number(int *number);
int device_number(int *number) {
  const int result = begin(DEVICE);
  if (result == 0) *number = device.device;
  return result;
}
