/* Which streams have a collective in front of what they do next, and which events come after one.

   A stream that NCCL is called on is behind a collective, and so is one that waits for an event of such a stream. It is so
   until the compute stream has waited for an event that was recorded on it since. No locks, no memory. */
#ifndef SYNCAGENT_MARKS_H
#define SYNCAGENT_MARKS_H

#include <stdbool.h>
#include <stdint.h>

void stream_is_behind(const void *stream); /* a collective, from here on */

/* An event has been recorded on that stream: it is marked where the stream is behind a collective, else its mark is gone. */
void event_is_recorded(const void *event, const void *stream);
void event_loses_its_mark(const void *event);

/* The event's mark; 0: there is none. */
uint64_t mark_of(const void *event);

/* The compute stream waits for that event: its mark is gone, and the stream's, unless more has come since. */
void mark_is_reached(const void *event, uint64_t mark);

void forget_marks(void);

/* Streams for which there was no room. */
uint64_t streams_without_mark(void);

#endif
