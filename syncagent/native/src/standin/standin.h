/* What the two libraries of the simulated device share.
 *
 * A gate is a number: how much the waiting thread waits for. Whoever has done a part takes one off, and at 0 the thread
 * goes on. Streams and events are handed over as a pointer to their gate, as handles are pointers on a GPU. */
#ifndef SYNCAGENT_STANDIN_H
#define SYNCAGENT_STANDIN_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#define EXPORTED __attribute__((visibility("default")))

typedef _Atomic uint32_t gate;

/* Addresses that stand for memory of each kind; nothing is read or written there. */
#define DEVICE_MEMORY ((void *)0x7f0000000000)
#define PINNED_MEMORY ((void *)0x7e0000000000)
#define PAGEABLE_MEMORY ((void *)0x7d0000000000)

enum { SUCCESS = 0, NOT_READY = 600 };                /* of cudaError_t */
enum { HOST_TO_DEVICE = 1, DEVICE_TO_HOST = 2 };      /* of cudaMemcpyKind */
enum { UNREGISTERED = 0, HOST = 1, DEVICE = 2 };      /* of cudaMemoryType */

/* What the functions of CUDA's runtime that are given neither a stream nor an event wait for on this thread. */
void syncagent_standin_use(gate *busy);

int cudaStreamSynchronize(void *stream);
int cudaDeviceSynchronize(void);
int cudaEventSynchronize(void *event);
int cudaMemcpyAsync(void *to, const void *from, size_t bytes, int direction, void *stream);
int cudaMemcpy(void *to, const void *from, size_t bytes, int direction);
int cudaFree(void *memory);
int cudaMalloc(void **memory, size_t bytes);
int cudaHostAlloc(void **memory, size_t bytes, unsigned flags);

struct attributes {  /* cudaPointerAttributes as all versions have it; CUDA 13's has more behind it */
  int type, device;
  void *on_device, *on_host;
};
int cudaPointerGetAttributes(struct attributes *into, const void *memory);

#endif
