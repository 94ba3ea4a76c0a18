#define _GNU_SOURCE
#include "standin_runtime.h"

#include <errno.h>
#include <string.h>
#include <time.h>

struct control control;

static int act(void) {
  const uint64_t ns = control.sleep_ns;
  const struct timespec time = {.tv_sec = (time_t)(ns / 1000000000), .tv_nsec = (long)(ns % 1000000000)};
  void (*inside)(void) = (void (*)(void))control.inside;
  struct timespec left = time;
  control.calls++;
  if (inside != NULL) inside();
  if (ns != 0)
    while (clock_nanosleep(CLOCK_MONOTONIC, 0, &left, &left) == EINTR) {
    }
  if (control.error != 0) errno = control.error;
  return control.result;
}

int cudaStreamSynchronize(void *stream) { return (void)stream, act(); }
int cudaStreamSynchronize_ptsz(void *stream) { return (void)stream, act(); }
int cudaDeviceSynchronize(void) { return act(); }
int cudaEventSynchronize(void *event) { return (void)event, act(); }
int cudaMemcpy(void *to, const void *from, size_t bytes, int kind) { return (void)to, (void)from, (void)bytes, (void)kind, act(); }
int cudaMemcpyAsync(void *to, const void *from, size_t bytes, int kind, void *stream) {
  return (void)to, (void)from, (void)bytes, (void)kind, (void)stream, act();
}
int cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width, size_t height, int kind,
                      void *stream) {
  const uintptr_t arguments[8] = {(uintptr_t)to, to_pitch, (uintptr_t)from, from_pitch,
                                  width,         height,   (uintptr_t)kind, (uintptr_t)stream};
  memcpy(control.arguments, arguments, sizeof arguments);
  return act();
}
int cudaMemcpy3D(const struct copy_3d *copy) { return (void)copy, act(); }
int cudaMemcpyToSymbolAsync(const void *symbol, const void *from, size_t bytes, size_t offset, int kind, void *stream) {
  return (void)symbol, (void)from, (void)bytes, (void)offset, (void)kind, (void)stream, act();
}
int cudaMalloc(void **pointer, size_t bytes) { return *pointer = NULL, (void)bytes, act(); }
int cudaFree(void *pointer) { return (void)pointer, act(); }

/* Of the streams and events, in standin_events.c. */
int event_error(void);
int take_event_error(void);
int device_number(int *number);
int cudaGetDevice(int *device) { return device_number(device); }

int cudaPointerGetAttributes(void *into, const void *pointer) {
  control.asked++;
  errno = EDOM;
  if (control.fails) return control.last_error = 1;
  *(int *)into = (uintptr_t)pointer == control.pageable ? 0 : 2;
  return 0;
}
int cudaPeekAtLastError(void) { return control.last_error != 0 ? control.last_error : event_error(); }
int cudaGetLastError(void) {
  const int error = cudaPeekAtLastError();
  control.last_error = 0;
  take_event_error();
  return error;
}
