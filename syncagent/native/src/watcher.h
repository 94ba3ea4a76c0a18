/* Announces waits while they are open. */
#ifndef SYNCAGENT_WATCHER_H
#define SYNCAGENT_WATCHER_H

#include <stdint.h>

void stop_watching(void); /* waits for the thread, and sends whoever is in next_looks away */

/* Has Python call back with that wait's number; by the thread that has waited, at once when it is over. */
void call_back_soon(uint64_t number);

void forget_watcher_after_fork(void);

uint64_t looks_told(void);

#endif
