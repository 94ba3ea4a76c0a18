#define _GNU_SOURCE
#include "marks.h"

#include <stdatomic.h>
#include <stddef.h>

#define STREAMS 256 /* torch has 64 of its own for each device; their number has to fit into a byte */
#define PROBES 32
#define SETS 512
#define WAYS 4

/* `began` counts what has put the stream behind a collective, `reached` is what of that the compute stream has waited for. */
static struct {
  _Atomic(uintptr_t) key; /* the stream + 1, as the default stream is 0; 0: free. Never freed again but by forget_marks. */
  _Atomic(uint32_t) began, reached;
} streams[STREAMS];

/* An event's address, the number of its stream, and the low byte of what had begun there. An event that is forgotten in
   favour of another is a wait less that is measured; a destroyed one is forgotten like this. */
static _Atomic(uint64_t) events[SETS][WAYS];
static _Atomic(uint32_t) next_way;

static _Atomic(uint64_t) no_room;

static uint32_t hash(const void *handle) { return (uint32_t)(((uintptr_t)handle >> 4) * 0x9E3779B97F4A7C15u >> 40); }

static uint64_t of_event(const void *event) { return (uint64_t)(uintptr_t)event << 16; } /* addresses have 48 bits */

static int number_of(const void *stream, bool add) {
  const uintptr_t wanted = (uintptr_t)stream + 1;
  uint32_t at = hash(stream);
  for (int i = 0; i < PROBES; i++, at++) {
    _Atomic(uintptr_t) *key = &streams[at % STREAMS].key;
    uintptr_t found = atomic_load_explicit(key, memory_order_acquire);
    if (found == 0 && !add) return -1;
    if (found == 0 &&
        atomic_compare_exchange_strong_explicit(key, &found, wanted, memory_order_acq_rel, memory_order_acquire))
      return (int)(at % STREAMS);
    if (found == wanted) return (int)(at % STREAMS);
  }
  return -1;
}

void stream_is_behind(const void *stream) {
  const int number = number_of(stream, true);
  if (number >= 0) atomic_fetch_add_explicit(&streams[number].began, 1, memory_order_release);
  else atomic_fetch_add_explicit(&no_room, 1, memory_order_relaxed);
}

static _Atomic(uint64_t) *cell_of(const void *event) {
  _Atomic(uint64_t) *set = events[hash(event) % SETS];
  for (int way = 0; way < WAYS; way++)
    if (atomic_load_explicit(&set[way], memory_order_acquire) >> 16 == of_event(event) >> 16) return &set[way];
  return NULL;
}

void event_loses_its_mark(const void *event) {
  _Atomic(uint64_t) *cell = cell_of(event);
  if (cell != NULL) atomic_store_explicit(cell, 0, memory_order_release);
}

void event_is_recorded(const void *event, const void *stream) {
  const int number = number_of(stream, false);
  const uint32_t began = number >= 0 ? atomic_load_explicit(&streams[number].began, memory_order_acquire) : 0;
  if (number < 0 || began == atomic_load_explicit(&streams[number].reached, memory_order_relaxed)) {
    event_loses_its_mark(event);
    return;
  }
  _Atomic(uint64_t) *cell = cell_of(event);
  if (cell == NULL) {
    _Atomic(uint64_t) *set = events[hash(event) % SETS];
    for (int way = 0; way < WAYS && cell == NULL; way++)
      if (atomic_load_explicit(&set[way], memory_order_relaxed) == 0) cell = &set[way];
    if (cell == NULL) cell = &set[atomic_fetch_add_explicit(&next_way, 1, memory_order_relaxed) % WAYS];
  }
  atomic_store_explicit(cell, of_event(event) | (uint64_t)number << 8 | (began & 0xff), memory_order_release);
}

uint64_t mark_of(const void *event) {
  const _Atomic(uint64_t) *cell = cell_of(event);
  const uint64_t mark = cell != NULL ? atomic_load_explicit(cell, memory_order_acquire) : 0;
  return mark >> 16 == of_event(event) >> 16 ? mark : 0;
}

void mark_is_reached(const void *event, uint64_t mark) {
  const int number = mark >> 8 & 0xff;
  const uint32_t began = atomic_load_explicit(&streams[number].began, memory_order_acquire);
  _Atomic(uint64_t) *cell = cell_of(event);
  if (cell != NULL) atomic_compare_exchange_strong_explicit(cell, &mark, 0, memory_order_acq_rel, memory_order_relaxed);
  if ((began & 0xff) == (mark & 0xff)) atomic_store_explicit(&streams[number].reached, began, memory_order_release);
}

void forget_marks(void) {
  for (int i = 0; i < STREAMS; i++) {
    atomic_store_explicit(&streams[i].key, 0, memory_order_relaxed);
    atomic_store_explicit(&streams[i].reached, atomic_load_explicit(&streams[i].began, memory_order_relaxed), memory_order_relaxed);
  }
  for (int i = 0; i < SETS; i++)
    for (int way = 0; way < WAYS; way++) atomic_store_explicit(&events[i][way], 0, memory_order_relaxed);
  atomic_store_explicit(&no_room, 0, memory_order_relaxed);
}

uint64_t streams_without_mark(void) { return atomic_load_explicit(&no_room, memory_order_relaxed); }
