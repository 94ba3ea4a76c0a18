/* The functions of the CUDA runtime that can make the host wait; one line each, in the order of their numbers.

   WAITS(name, parameters, arguments)                        returns when the device is done: every call is a wait
   MAY_WAIT(name, parameters, arguments, bytes)              waits now and then: a wait from the threshold on
   TAKES_TIME(name, parameters, arguments, bytes)            takes long by itself: a wait from ten times the threshold on
   COPIES(name, parameters, arguments, bytes, direction)     as MAY_WAIT, with cudaMemcpyKind
   QUEUES(name, parameters, arguments, bytes, direction, to, from)
                                                             a copy that is asynchronous unless `to` or `from` is pageable

   Includers define FUNCTION(name, sort, parameters, arguments, bytes, direction, to, from). Handles and structures are
   void *; enums are int. No include guard: it is included once for every use. */

#define WAITS(NAME, PARAMETERS, ARGUMENTS) FUNCTION(NAME, SORT_WAITS, PARAMETERS, ARGUMENTS, 0, -1, NULL, NULL)
#define MAY_WAIT(NAME, PARAMETERS, ARGUMENTS, BYTES) \
  FUNCTION(NAME, SORT_MAY_WAIT, PARAMETERS, ARGUMENTS, BYTES, -1, NULL, NULL)
#define TAKES_TIME(NAME, PARAMETERS, ARGUMENTS, BYTES) \
  FUNCTION(NAME, SORT_TAKES_TIME, PARAMETERS, ARGUMENTS, BYTES, -1, NULL, NULL)
#define COPIES(NAME, PARAMETERS, ARGUMENTS, BYTES, DIRECTION) \
  FUNCTION(NAME, SORT_MAY_WAIT, PARAMETERS, ARGUMENTS, BYTES, DIRECTION, NULL, NULL)
#define QUEUES(NAME, PARAMETERS, ARGUMENTS, BYTES, DIRECTION, TO, FROM) \
  FUNCTION(NAME, SORT_QUEUES, PARAMETERS, ARGUMENTS, BYTES, DIRECTION, TO, FROM)

WAITS(cudaStreamSynchronize, (void *stream), (stream))
WAITS(cudaStreamSynchronize_ptsz, (void *stream), (stream))
WAITS(cudaDeviceSynchronize, (void), ())
WAITS(cudaEventSynchronize, (void *event), (event))
WAITS(cudaThreadSynchronize, (void), ())

COPIES(cudaMemcpy, (void *to, const void *from, size_t bytes, int kind), (to, from, bytes, kind), bytes, kind)
COPIES(cudaMemcpy_ptds, (void *to, const void *from, size_t bytes, int kind), (to, from, bytes, kind), bytes, kind)
COPIES(cudaMemcpy2D, (void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width, size_t height, int kind),
       (to, to_pitch, from, from_pitch, width, height, kind), width *height, kind)
COPIES(cudaMemcpy2D_ptds, (void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width, size_t height, int kind),
       (to, to_pitch, from, from_pitch, width, height, kind), width *height, kind)
COPIES(cudaMemcpy3D, (const struct copy_3d *copy), (copy), bytes_3d(copy), copy ? copy->kind : -1)
COPIES(cudaMemcpy3D_ptds, (const struct copy_3d *copy), (copy), bytes_3d(copy), copy ? copy->kind : -1)
COPIES(cudaMemcpyPeer, (void *to, int to_device, const void *from, int from_device, size_t bytes),
       (to, to_device, from, from_device, bytes), bytes, DEVICE_TO_DEVICE)
COPIES(cudaMemcpyToSymbol, (const void *symbol, const void *from, size_t bytes, size_t offset, int kind),
       (symbol, from, bytes, offset, kind), bytes, kind)
COPIES(cudaMemcpyToSymbol_ptds, (const void *symbol, const void *from, size_t bytes, size_t offset, int kind),
       (symbol, from, bytes, offset, kind), bytes, kind)
COPIES(cudaMemcpyFromSymbol, (void *to, const void *symbol, size_t bytes, size_t offset, int kind),
       (to, symbol, bytes, offset, kind), bytes, kind)
COPIES(cudaMemcpyFromSymbol_ptds, (void *to, const void *symbol, size_t bytes, size_t offset, int kind),
       (to, symbol, bytes, offset, kind), bytes, kind)

QUEUES(cudaMemcpyAsync, (void *to, const void *from, size_t bytes, int kind, void *stream), (to, from, bytes, kind, stream),
       bytes, kind, to, from)
QUEUES(cudaMemcpyAsync_ptsz, (void *to, const void *from, size_t bytes, int kind, void *stream),
       (to, from, bytes, kind, stream), bytes, kind, to, from)
QUEUES(cudaMemcpy2DAsync, (void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width, size_t height, int kind, void *stream),
       (to, to_pitch, from, from_pitch, width, height, kind, stream), width *height, kind, to, from)
QUEUES(cudaMemcpy2DAsync_ptsz, (void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width, size_t height, int kind, void *stream),
       (to, to_pitch, from, from_pitch, width, height, kind, stream), width *height, kind, to, from)
QUEUES(cudaMemcpy3DAsync, (const struct copy_3d *copy, void *stream), (copy, stream), bytes_3d(copy), copy ? copy->kind : -1,
       copy ? copy->to.pointer : NULL, copy ? copy->from.pointer : NULL)
QUEUES(cudaMemcpy3DAsync_ptsz, (const struct copy_3d *copy, void *stream), (copy, stream), bytes_3d(copy), copy ? copy->kind : -1,
       copy ? copy->to.pointer : NULL, copy ? copy->from.pointer : NULL)
QUEUES(cudaMemcpyPeerAsync, (void *to, int to_device, const void *from, int from_device, size_t bytes, void *stream),
       (to, to_device, from, from_device, bytes, stream), bytes, DEVICE_TO_DEVICE, to, from)
/* A symbol is memory of the device, though its address is one of the host: only the other side can be pageable. */
QUEUES(cudaMemcpyToSymbolAsync, (const void *symbol, const void *from, size_t bytes, size_t offset, int kind, void *stream),
       (symbol, from, bytes, offset, kind, stream), bytes, kind, from, from)
QUEUES(cudaMemcpyToSymbolAsync_ptsz, (const void *symbol, const void *from, size_t bytes, size_t offset, int kind, void *stream),
       (symbol, from, bytes, offset, kind, stream), bytes, kind, from, from)
QUEUES(cudaMemcpyFromSymbolAsync, (void *to, const void *symbol, size_t bytes, size_t offset, int kind, void *stream),
       (to, symbol, bytes, offset, kind, stream), bytes, kind, to, to)
QUEUES(cudaMemcpyFromSymbolAsync_ptsz, (void *to, const void *symbol, size_t bytes, size_t offset, int kind, void *stream),
       (to, symbol, bytes, offset, kind, stream), bytes, kind, to, to)

MAY_WAIT(cudaMemset, (void *to, int value, size_t bytes), (to, value, bytes), bytes)
MAY_WAIT(cudaMemset_ptds, (void *to, int value, size_t bytes), (to, value, bytes), bytes)
TAKES_TIME(cudaMalloc, (void **pointer, size_t bytes), (pointer, bytes), bytes)
TAKES_TIME(cudaMallocManaged, (void **pointer, size_t bytes, unsigned flags), (pointer, bytes, flags), bytes)
MAY_WAIT(cudaFree, (void *pointer), (pointer), 0)
TAKES_TIME(cudaHostAlloc, (void **pointer, size_t bytes, unsigned flags), (pointer, bytes, flags), bytes)
TAKES_TIME(cudaMallocHost, (void **pointer, size_t bytes), (pointer, bytes), bytes)
MAY_WAIT(cudaFreeHost, (void *pointer), (pointer), 0)
TAKES_TIME(cudaHostRegister, (void *pointer, size_t bytes, unsigned flags), (pointer, bytes, flags), bytes)
MAY_WAIT(cudaHostUnregister, (void *pointer), (pointer), 0)
MAY_WAIT(cudaDeviceReset, (void), (), 0)
MAY_WAIT(cudaMemPoolTrimTo, (void *pool, size_t kept), (pool, kept), 0)
MAY_WAIT(cudaFreeArray, (void *array), (array), 0)
TAKES_TIME(cudaDeviceSetLimit, (int limit, size_t value), (limit, value), 0)
/* The first use of a kernel loads it, for which the driver may wait. */
TAKES_TIME(cudaFuncSetAttribute, (const void *function, int attribute, int value), (function, attribute, value), 0)
TAKES_TIME(cudaFuncGetAttributes, (void *into, const void *function), (into, function), 0)

#undef WAITS
#undef MAY_WAIT
#undef TAKES_TIME
#undef COPIES
#undef QUEUES
