/* The library's lock, which keeps fork out of what it protects, and its times of being live. */
#ifndef SYNCAGENT_LIBRARY_H
#define SYNCAGENT_LIBRARY_H

#include <stdbool.h>
#include <stdint.h>

bool enter_library(void); /* false: this thread is inside already (a signal handler) */
void leave_library(void);

uint64_t current_session(void); /* 0 while stopped; another one after each start */

#endif
