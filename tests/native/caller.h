/* What an object that uses the runtime offers to the tests: its calls go through its own entries. */
#ifndef CALLER_H
#define CALLER_H

#include "standin_runtime.h"

struct caller {
  int (*stream)(void);
  int (*device)(void);
  int (*event)(void);
  int (*get_device)(void);
  int (*copy)(size_t bytes, int kind);
  int (*copy_async)(void *to, const void *from, size_t bytes);
  int (*copy_2d_async)(void);
  int (*copy_3d)(const struct copy_3d *copy);
  int (*copy_to_symbol)(const void *symbol, const void *from);
  int (*allocate)(size_t bytes);
  int (*free)(void);
  uintptr_t (*address)(void); /* of cudaStreamSynchronize, as this object sees it */
  int (*copy_and_wait)(void);
  struct control *control;    /* of the runtime that it is linked with */
};

#endif
