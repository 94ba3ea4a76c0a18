/* The libcudarts and libnccls of the process, and where their functions are. */
#ifndef SYNCAGENT_RUNTIMES_H
#define SYNCAGENT_RUNTIMES_H

#include <link.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Libraries have numbers: runtimes from 0 on, those of NCCL from MOST_RUNTIMES on. */
#define MOST_RUNTIMES 4
#define MOST_NCCLS 2
#define LIBRARIES (MOST_RUNTIMES + MOST_NCCLS)

/* Functions that can make the host wait, then those that are hooked for joins. */
#define FUNCTION(NAME, ...) NUMBER_##NAME,
enum {
#include "functions.h"
  FUNCTIONS,
  LAST_THAT_WAITS = FUNCTIONS - 1,
#include "event_functions.h"
#include "nccl_functions.h"
  ALL_FUNCTIONS
};
#undef FUNCTION

extern const char *const function_names[ALL_FUNCTIONS];

/* Set before the library is counted, and never changed: a library is not unloaded once we know it. 0: it has none. */
extern _Atomic(uintptr_t) originals[LIBRARIES][ALL_FUNCTIONS];

/* Functions of a runtime that we call ourselves; NULL where it has none. */
struct questions {
  int (*pointer_attributes)(void *into, const void *pointer);
  int (*peek_at_last_error)(void);
  int (*get_last_error)(void);
  bool can_measure; /* it has all that follow, and those above */
  int (*get_device)(int *device);
  int (*is_capturing)(void *stream, int *status);
  int (*exchange_capture_mode)(int *mode);
  int (*create_event)(void **event, unsigned flags);
  int (*record_event)(void *event, void *stream);
  int (*query_event)(void *event);
  int (*elapsed_ms)(float *ms, void *from, void *to);
};
extern struct questions questions[MOST_RUNTIMES];

int runtime_count(void);

/* What of an object matters here; from its program headers. */
struct extent {
  uintptr_t base, low, high;        /* of its segments */
  uintptr_t relro_low, relro_high;  /* whole pages that the loader makes read-only once it is done */
  const ElfW(Dyn) * dynamic;        /* NULL: none */
};
void extent_of(const struct dl_phdr_info *info, struct extent *into);

enum kind { OTHER_LIBRARY, CUDA_RUNTIME, NCCL };
enum kind kind_of_library(const struct dl_phdr_info *info);

/* Libraries that have been seen while the loader's lock was held, and are not known yet. */
struct found_libraries {
  int count;
  struct {
    struct extent extent;
    enum kind kind;
    char name[1024];
  } each[LIBRARIES];
};
void note_library(const struct dl_phdr_info *info, enum kind kind, struct found_libraries *found);

/* Looks their functions up and makes them known; not while the loader's lock is held. */
void open_libraries(const struct found_libraries *found);

#endif
