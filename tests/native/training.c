#define _GNU_SOURCE
#include "training.h"

static int create(void **event) { return cudaEventCreateWithFlags(event, 2); } /* without timing, as torch's */
static int destroy(void *event) { return cudaEventDestroy(event); }
static int record(void *event, void *stream) { return cudaEventRecord(event, stream); }
static int record_with_flags(void *event, void *stream) { return cudaEventRecordWithFlags(event, stream, 0); }
static int wait(void *stream, void *event) { return cudaStreamWaitEvent(stream, event, 0); }
static int reset(void) { return cudaDeviceReset(); }
static int peek(void) { return cudaPeekAtLastError(); }
static int get_error(void) { return cudaGetLastError(); }
static int all_reduce(void *stream) { return ncclAllReduce(NULL, NULL, 1, 7, 0, NULL, stream); }
static int all_gather(void *stream) { return ncclAllGather(NULL, NULL, 1, 7, NULL, stream); }
static int send(void *stream) { return ncclSend(NULL, 1, 7, 1, NULL, stream); }
static int receive(void *stream) { return ncclRecv(NULL, 1, 7, 1, NULL, stream); }
static int group_start(void) { return ncclGroupStart(); }
static int group_end(void) { return ncclGroupEnd(); }
static uintptr_t wait_address(void) { return (uintptr_t)cudaStreamWaitEvent; }
static uintptr_t reduce_address(void) { return (uintptr_t)ncclAllReduce; }

struct training *training(void);
struct training *training(void) {
  static struct training offered = {create,      destroy,   record,     record_with_flags, wait,         reset,
                                    peek,        get_error, all_reduce, all_gather,        send,         receive,
                                    group_start, group_end, device_works, device_busy_until, wait_address, reduce_address,
                                    NULL};
  offered.device = &device;
  return &offered;
}
