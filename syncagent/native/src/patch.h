/* The walk over the entries of loaded objects. */
#ifndef SYNCAGENT_PATCH_H
#define SYNCAGENT_PATCH_H

#include <stdbool.h>
#include <stdint.h>

/* What the last walk saw. */
struct seen {
  uint64_t objects, entries, foreign, read_only, unresolved;
  uint64_t hooks, hooks_missed; /* entries for joins: ours, and those that cannot be */
};

/* Points entries at our wrappers; `force`: also where nothing has been loaded since the last walk. Returns how many have
   become ours. One at a time; so is restore_entries. */
int patch_entries(bool force, struct seen *seen);

/* Points entries that are still ours at the functions that they were taken from. */
void restore_entries(struct seen *seen);

#endif
