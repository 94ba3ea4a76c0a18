/* The libcudarts of the process, and where their functions are. */
#ifndef SYNCAGENT_RUNTIMES_H
#define SYNCAGENT_RUNTIMES_H

#include <link.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define MOST_RUNTIMES 4

#define FUNCTION(NAME, ...) NUMBER_##NAME,
enum {
#include "functions.h"
  FUNCTIONS
};
#undef FUNCTION

extern const char *const function_names[FUNCTIONS];

/* Set before the runtime is counted, and never changed: a runtime is not unloaded once we know it. */
extern _Atomic(uintptr_t) originals[MOST_RUNTIMES][FUNCTIONS];

/* Functions of a runtime that we call ourselves; NULL where it has none. */
struct questions {
  int (*pointer_attributes)(void *into, const void *pointer);
  int (*peek_at_last_error)(void);
  int (*get_last_error)(void);
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

bool is_runtime(const struct dl_phdr_info *info);

/* Runtimes that have been seen while the loader's lock was held, and are not known yet. */
struct found_runtimes {
  int count;
  struct {
    struct extent extent;
    char name[1024];
  } each[MOST_RUNTIMES];
};
void note_runtime(const struct dl_phdr_info *info, struct found_runtimes *found);

/* Looks their functions up and makes them known; not while the loader's lock is held. */
void open_runtimes(const struct found_runtimes *found);

#endif
