/* What a training framework calls, by its own entries: streams, events and NCCL. */
#ifndef TRAINING_H
#define TRAINING_H

#include "standin_device.h"

struct training {
  int (*create)(void **event), (*destroy)(void *event), (*record)(void *event, void *stream);
  int (*record_with_flags)(void *event, void *stream), (*wait)(void *stream, void *event), (*reset)(void);
  int (*peek)(void), (*get_error)(void);
  int (*all_reduce)(void *stream), (*all_gather)(void *stream), (*send)(void *stream), (*receive)(void *stream);
  int (*group_start)(void), (*group_end)(void);
  void (*works)(void *stream, uint64_t ns);
  uint64_t (*busy_until)(void *stream);
  uintptr_t (*wait_address)(void), (*reduce_address)(void); /* as this object sees them */
  struct device *device;
};

#endif
