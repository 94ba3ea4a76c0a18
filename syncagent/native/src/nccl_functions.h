/* NCCL's functions that put work into a stream, and the two that hold several of them together; one line each, in the order
   of their numbers.

   COLLECTIVE(name, parameters, arguments)   puts a kernel that waits for other ranks into `stream`
   GROUP(name, sort)                         GROUP_START or GROUP_END: what is called in between begins at the outermost end

   Includers define FUNCTION(name, sort, parameters, arguments). No include guard: it is included once for every use. */

#define COLLECTIVE(NAME, PARAMETERS, ARGUMENTS) FUNCTION(NAME, COLLECTIVE_CALL, PARAMETERS, ARGUMENTS)
#define GROUP(NAME, SORT) FUNCTION(NAME, SORT, (void), ())

GROUP(ncclGroupStart, GROUP_START)
GROUP(ncclGroupEnd, GROUP_END)
COLLECTIVE(ncclAllReduce, (const void *from, void *to, size_t count, int type, int op, void *comm, void *stream),
           (from, to, count, type, op, comm, stream))
COLLECTIVE(ncclReduceScatter, (const void *from, void *to, size_t count, int type, int op, void *comm, void *stream),
           (from, to, count, type, op, comm, stream))
COLLECTIVE(ncclAllGather, (const void *from, void *to, size_t count, int type, void *comm, void *stream),
           (from, to, count, type, comm, stream))
COLLECTIVE(ncclBroadcast, (const void *from, void *to, size_t count, int type, int root, void *comm, void *stream),
           (from, to, count, type, root, comm, stream))
COLLECTIVE(ncclBcast, (void *memory, size_t count, int type, int root, void *comm, void *stream),
           (memory, count, type, root, comm, stream))
COLLECTIVE(ncclReduce, (const void *from, void *to, size_t count, int type, int op, int root, void *comm, void *stream),
           (from, to, count, type, op, root, comm, stream))
COLLECTIVE(ncclSend, (const void *from, size_t count, int type, int peer, void *comm, void *stream),
           (from, count, type, peer, comm, stream))
COLLECTIVE(ncclRecv, (void *to, size_t count, int type, int peer, void *comm, void *stream),
           (to, count, type, peer, comm, stream))
/* NCCL 2.28 and later */
COLLECTIVE(ncclAlltoAll, (const void *from, void *to, size_t count, int type, void *comm, void *stream),
           (from, to, count, type, comm, stream))
COLLECTIVE(ncclGather, (const void *from, void *to, size_t count, int type, int root, void *comm, void *stream),
           (from, to, count, type, root, comm, stream))
COLLECTIVE(ncclScatter, (const void *from, void *to, size_t count, int type, int root, void *comm, void *stream),
           (from, to, count, type, root, comm, stream))

#undef COLLECTIVE
#undef GROUP
