/* A libcudart for the tests: it does nothing but take its time. */
#ifndef STANDIN_RUNTIME_H
#define STANDIN_RUNTIME_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

struct control {
  _Atomic(uint64_t) sleep_ns;        /* how long each call takes */
  _Atomic(int) calls, result, error; /* how many there were; what they return; what they leave in errno (0: nothing) */
  _Atomic(int) last_error;           /* as cudaPeekAtLastError tells it */
  _Atomic(uintptr_t) inside;         /* void (*)(void), called by each call if not 0 */
  _Atomic(uintptr_t) pageable;       /* cudaPointerGetAttributes knows this address only as memory of the host's own */
  _Atomic(int) asked, fails;         /* how often that was asked; whether it fails */
  uintptr_t arguments[8];            /* of the last call of cudaMemcpy2DAsync */
};

struct extent_3d {
  size_t width, height, depth;
};
struct side_3d {
  void *array;
  size_t position[3];
  void *pointer;
  size_t pitch, row, rows;
};
struct copy_3d {
  struct side_3d from, to;
  struct extent_3d extent;
  int kind;
};

#ifndef NO_PROTOTYPES
int cudaStreamSynchronize(void *stream);
int cudaStreamSynchronize_ptsz(void *stream);
int cudaDeviceSynchronize(void);
int cudaEventSynchronize(void *event);
int cudaMemcpy(void *to, const void *from, size_t bytes, int kind);
int cudaMemcpyAsync(void *to, const void *from, size_t bytes, int kind, void *stream);
int cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width, size_t height, int kind,
                      void *stream);
int cudaMemcpy3D(const struct copy_3d *copy);
int cudaMemcpyToSymbolAsync(const void *symbol, const void *from, size_t bytes, size_t offset, int kind, void *stream);
int cudaMalloc(void **pointer, size_t bytes);
int cudaFree(void *pointer);
int cudaGetDevice(int *device); /* does not wait: no wrapper */
int cudaPeekAtLastError(void);
int cudaGetLastError(void);
#endif

#endif
