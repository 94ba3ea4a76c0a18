/* The functions of the CUDA runtime by which streams wait for one another; one line each, in the order of their numbers.
   None of them makes the host wait.

   RECORDS(name, parameters, arguments)     notes how far `stream` has come, in `event`
   WAITS_FOR(name, parameters, arguments)   has `stream` stand still until `event` is reached

   Includers define FUNCTION(name, sort, parameters, arguments). No include guard: it is included once for every use. */

#define RECORDS(NAME, PARAMETERS, ARGUMENTS) FUNCTION(NAME, RECORD, PARAMETERS, ARGUMENTS)
#define WAITS_FOR(NAME, PARAMETERS, ARGUMENTS) FUNCTION(NAME, STREAM_WAIT, PARAMETERS, ARGUMENTS)

RECORDS(cudaEventRecord, (void *event, void *stream), (event, stream))
RECORDS(cudaEventRecordWithFlags, (void *event, void *stream, unsigned flags), (event, stream, flags))
WAITS_FOR(cudaStreamWaitEvent, (void *stream, void *event, unsigned flags), (stream, event, flags))

#undef RECORDS
#undef WAITS_FOR
