/* A libcuda for the tests: the contexts of threads. */
#include <errno.h>

#include "standin_device.h"

#define DEEP 8
static __thread void *contexts[DEEP];
static __thread int depth;

int cuCtxGetCurrent(void **context) {
  *context = depth > 0 ? contexts[depth - 1] : NULL;
  return 0;
}

int cuCtxPushCurrent_v2(void *context) {
  errno = EDOM;
  if (depth == DEEP || context == NULL) return 201;
  contexts[depth++] = context;
  return 0;
}

int cuCtxPopCurrent_v2(void **context) {
  if (depth == 0) return 201;
  *context = contexts[--depth];
  return 0;
}
