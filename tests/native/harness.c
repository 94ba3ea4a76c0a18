/* Scenarios for the library, one a process: harness FOLDER SCENARIO. The folder has the library, two runtimes, and objects
   that are linked with one of them; see libraries.py. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <link.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "caller.h"
#include "syncagent_native.h"
#include "training.h"

/* The thread sanitizer does not know the loader's lock, under which names of objects are made and read.  It forgets that a
   name was written before it lets a callback of dl_iterate_phdr read it, but not its last byte, which is 0. */
const char *__tsan_default_suppressions(void);
const char *__tsan_default_suppressions(void) { return "race:kind_of_library\nrace:note_library\n"; }

#define UNAVAILABLE 77 /* exit code: this machine cannot run the scenario */
#define MILLISECOND 1000000u

#define CHECK(CONDITION)                                                                 \
  do {                                                                                   \
    if (!(CONDITION)) {                                                                  \
      fprintf(stderr, "%s:%d: %s does not hold\n", __FILE__, __LINE__, #CONDITION);      \
      _exit(1);                                                                          \
    }                                                                                    \
  } while (0)
#define EQUAL(IS, EXPECTED)                                                                                    \
  do {                                                                                                         \
    const long long is = (long long)(IS), expected = (long long)(EXPECTED);                                    \
    if (is != expected) {                                                                                      \
      fprintf(stderr, "%s:%d: %s is %lld, expected %lld\n", __FILE__, __LINE__, #IS, is, expected);            \
      _exit(1);                                                                                                \
    }                                                                                                          \
  } while (0)

static const char *folder;

static struct {
  int (*abi)(void), (*start)(uint64_t), (*walk)(int), (*slot_count)(void), (*take)(struct syncagent_wait *, int);
  int (*function_count)(void), (*next_looks)(uint32_t *, uint64_t *, int, int);
  void (*stop)(void), (*status)(struct syncagent_status *), (*sums)(uint64_t *), (*set_looks)(int, uint64_t);
  void (*pending)(void *, int (*)(void *), uint64_t);
  struct syncagent_slot *(*own_slot)(void), *(*slots)(void);
  const char *(*function)(int);
  int (*measure_joins)(int), (*take_joins)(struct syncagent_join *, int);
  void (*compute_stream)(uint64_t);
} native;

static void *open_object(const char *name) {
  char path[4096];
  snprintf(path, sizeof path, "%s/%s", folder, name);
  void *object = dlopen(path, RTLD_LAZY | RTLD_LOCAL);
  if (object == NULL) fprintf(stderr, "%s\n", dlerror());
  CHECK(object != NULL);
  return object;
}

static void *find(void *object, const char *name) {
  void *address = dlsym(object, name);
  if (address == NULL) fprintf(stderr, "%s\n", dlerror());
  CHECK(address != NULL);
  return address;
}

static void open_library(void) {
  void *library = open_object("libsyncagent_native.so");
#define FIND(NAME) *(void **)&native.NAME = find(library, "syncagent_" #NAME)
  FIND(abi), FIND(start), FIND(walk), FIND(slot_count), FIND(take), FIND(function_count), FIND(next_looks), FIND(stop);
  FIND(status), FIND(sums), FIND(set_looks), FIND(pending), FIND(own_slot), FIND(slots), FIND(function);
  FIND(measure_joins), FIND(take_joins), FIND(compute_stream);
  EQUAL(native.abi(), SYNCAGENT_ABI);
}

static struct caller *caller_of(void *object) { return ((struct caller * (*)(void)) find(object, "caller"))(); }
static struct caller *open_caller(const char *name) { return caller_of(open_object(name)); }

static struct syncagent_status status_now(void) {
  struct syncagent_status status;
  native.status(&status);
  return status;
}

static int number_of(const char *name) {
  for (int f = 0; f < native.function_count(); f++)
    if (strcmp(native.function(f), name) == 0) return f;
  fprintf(stderr, "%s has no number\n", name);
  _exit(1);
}

static uint64_t sum_of(const char *name, int which) {
  uint64_t sums[1024];
  CHECK(native.function_count() <= 512);
  native.sums(sums);
  return sums[2 * number_of(name) + which];
}

static int take_all(void) {
  static struct syncagent_wait waits[1000];
  int all = 0, more;
  while ((more = native.take(waits, 1000)) > 0) all += more;
  return all;
}

static struct syncagent_wait take_one(void) {
  struct syncagent_wait waits[2];
  memset(waits, 0xff, sizeof waits);
  EQUAL(native.take(waits, 2), 1);
  return waits[0];
}

static uint64_t now_ns(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

static void pause_ms(int ms) {
  struct timespec left = {.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000L};
  while (clock_nanosleep(CLOCK_MONOTONIC, 0, &left, &left) == EINTR) {
  }
}

/* Where that object keeps the address of that function. */
static uintptr_t *entry_of(void *object, const char *name) {
  struct link_map *map;
  const ElfW(Sym) *symbols = NULL;
  const char *strings = NULL;
  const ElfW(Rela) *relocations[2] = {NULL, NULL};
  size_t counts[2] = {0, 0};
  CHECK(dlinfo(object, RTLD_DI_LINKMAP, &map) == 0);
  for (const ElfW(Dyn) *d = map->l_ld; d->d_tag != DT_NULL; d++) {
    if (d->d_tag == DT_SYMTAB) symbols = (void *)d->d_un.d_ptr;
    if (d->d_tag == DT_STRTAB) strings = (void *)d->d_un.d_ptr;
    if (d->d_tag == DT_JMPREL) relocations[0] = (void *)d->d_un.d_ptr;
    if (d->d_tag == DT_PLTRELSZ) counts[0] = d->d_un.d_val / sizeof(ElfW(Rela));
    if (d->d_tag == DT_RELA) relocations[1] = (void *)d->d_un.d_ptr;
    if (d->d_tag == DT_RELASZ) counts[1] = d->d_un.d_val / sizeof(ElfW(Rela));
  }
  for (int k = 0; k < 2; k++)
    for (size_t i = 0; i < counts[k]; i++)
      if (strcmp(strings + symbols[ELF64_R_SYM(relocations[k][i].r_info)].st_name, name) == 0)
        return (uintptr_t *)(map->l_addr + relocations[k][i].r_offset);
  fprintf(stderr, "there is no entry for %s\n", name);
  _exit(1);
}

/* "r--" or the like: what may be done with that address. */
static const char *protection_of(const void *address) {
  static char permissions[8];
  char line[4096];
  unsigned long low, high;
  FILE *maps = fopen("/proc/self/maps", "r");
  CHECK(maps != NULL);
  while (fgets(line, sizeof line, maps) != NULL)
    if (sscanf(line, "%lx-%lx %3s", &low, &high, permissions) == 3 && low <= (uintptr_t)address && (uintptr_t)address < high) {
      fclose(maps);
      return permissions;
    }
  fclose(maps);
  return "";
}

static void protect(void *address, int protection) {
  const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
  CHECK(mprotect((void *)((uintptr_t)address & ~(page - 1)), page, protection) == 0);
}

static pthread_t start_thread(void *(*run)(void *), void *with) {
  pthread_t thread;
  CHECK(pthread_create(&thread, NULL, run, with) == 0);
  return thread;
}

/* A thread that waits in the runtime until it is let go. */
static struct {
  struct caller *caller;
  _Atomic(bool) inside, go;
  bool is_main; /* for the library */
  _Atomic(struct syncagent_slot *) slot;
} held;
static __thread bool is_held;

static void hold(void) {
  if (!is_held) return;
  held.inside = true;
  while (!held.go) pause_ms(1);
}

static int add_pending(int (*function)(void *), void *argument);
static int called(void *argument);

static void *wait_until_let_go(void *unused) {
  is_held = true;
  held.slot = native.own_slot();
  if (held.is_main) native.pending((void *)add_pending, called, (uint64_t)pthread_self());
  held.caller->stream();
  return unused;
}

static pthread_t start_held_wait(struct caller *caller) {
  held.caller = caller;
  held.inside = held.go = false;
  caller->control->inside = (uintptr_t)hold;
  const pthread_t thread = start_thread(wait_until_let_go, NULL);
  while (!held.inside) pause_ms(1);
  return thread;
}

static void let_go(pthread_t thread) {
  held.go = true;
  CHECK(pthread_join(thread, NULL) == 0);
}

/* ---- what a wait is ---- */

static void calls_are_timed(void) {
  struct caller *one = open_caller("libcaller-a.so");
  open_library();
  one->control->sleep_ns = 2 * MILLISECOND;
  one->control->result = 42;
  CHECK(native.start(MILLISECOND) > 0);
  EQUAL(one->stream(), 42);
  struct syncagent_slot *slot = native.own_slot();
  struct syncagent_wait wait = take_one();
  EQUAL(wait.function, number_of("cudaStreamSynchronize"));
  EQUAL(wait.number, 1);
  EQUAL(wait.direction, -1);
  EQUAL(wait.bytes, 0);
  EQUAL(wait.flags, 0);
  EQUAL(wait.tid, syscall(SYS_gettid));
  EQUAL(wait.slot, slot - native.slots());
  CHECK(wait.end_ns - wait.start_ns >= 2 * MILLISECOND && wait.end_ns <= now_ns());
  EQUAL(slot->start_ns, 0);
  EQUAL(slot->number, 1);
  EQUAL(slot->tid, syscall(SYS_gettid));
  EQUAL(slot->ident, (uint64_t)pthread_self());
  EQUAL(slot->unnamed_ns, wait.end_ns - wait.start_ns);
  EQUAL(slot->unnamed_waits, 1);
  EQUAL(sum_of("cudaStreamSynchronize", 0), 1);
  EQUAL(sum_of("cudaStreamSynchronize", 1), wait.end_ns - wait.start_ns);

  EQUAL(one->copy(1234, 2), 42); /* size and direction */
  wait = take_one();
  EQUAL(wait.function, number_of("cudaMemcpy"));
  EQUAL(wait.bytes, 1234);
  EQUAL(wait.direction, 2);
  EQUAL(wait.number, 2);
  const struct copy_3d copy = {.extent = {5, 6, 7}, .kind = 4};
  one->copy_3d(&copy);
  wait = take_one();
  EQUAL(wait.bytes, 5 * 6 * 7);
  EQUAL(wait.direction, 4);
  one->copy_2d_async();
  wait = take_one();
  EQUAL(wait.bytes, ((uint64_t)5 << 32) * 6);
  EQUAL(wait.direction, 2);
  const uintptr_t arguments[8] = {1, 2, 3, 4, (uintptr_t)5 << 32, 6, 2, 8}; /* all arrive at the original */
  CHECK(memcmp(one->control->arguments, arguments, sizeof arguments) == 0);
  one->allocate(76); /* takes long by itself: twice the threshold is no wait */
  one->control->sleep_ns = 20 * MILLISECOND;
  one->allocate(77);
  EQUAL(take_one().bytes, 77);
  one->control->sleep_ns = 2 * MILLISECOND;
  slot->named++;
  one->allocate(78);
  EQUAL(slot->named_ns, 0);
  one->control->sleep_ns = 20 * MILLISECOND;
  one->allocate(79);
  CHECK(slot->named_ns >= 20 * MILLISECOND && slot->named_waits == 1);
  slot->named--;
  one->get_device(); /* has no wrapper */
  EQUAL(slot->number, 8);
}

static void short_calls_are_added_up(void) {
  struct caller *one = open_caller("libcaller-a.so");
  open_library();
  CHECK(native.start(3600ull * 1000 * MILLISECOND) > 0); /* nothing is long enough */
  struct syncagent_slot *slot = native.own_slot();
  for (int i = 0; i < 10; i++) one->stream(), one->copy(1, 1), one->allocate(1);
  EQUAL(native.take(NULL, 0), 0);
  EQUAL(take_all(), 0);
  EQUAL(slot->number, 30);
  EQUAL(slot->unnamed_waits, 10); /* synchronize calls always are waits */
  EQUAL(sum_of("cudaStreamSynchronize", 0), 10);
  EQUAL(sum_of("cudaStreamSynchronize", 1), slot->unnamed_ns);
  EQUAL(sum_of("cudaMemcpy", 0), 10);
  EQUAL(sum_of("cudaMalloc", 0), 10);
  CHECK(sum_of("cudaMemcpy", 1) > 0);
  slot->named++;
  for (int i = 0; i < 5; i++) one->stream(), one->copy(1, 1);
  slot->named--;
  EQUAL(slot->named_waits, 5);
  CHECK(slot->named_ns > 0);
  EQUAL(slot->unnamed_waits, 10);
  EQUAL(sum_of("cudaStreamSynchronize", 0), 10);
  EQUAL(sum_of("cudaMemcpy", 0), 10);
}

static void named_waits_go_into_their_sum_alone(void) {
  struct caller *one = open_caller("libcaller-a.so");
  open_library();
  one->control->sleep_ns = 2 * MILLISECOND;
  CHECK(native.start(MILLISECOND) > 0);
  struct syncagent_slot *slot = native.own_slot();
  slot->named++;
  one->copy(1, 1);
  one->event();
  slot->named--;
  EQUAL(take_all(), 0);
  EQUAL(slot->named_waits, 2);
  CHECK(slot->named_ns >= 4 * MILLISECOND);
  EQUAL(slot->unnamed_waits, 0);
  EQUAL(slot->unnamed_ns, 0);
  EQUAL(sum_of("cudaEventSynchronize", 0), 0);
  EQUAL(slot->number, 2);
}

static void full_queues_are_told_from_pageable_copies(void) {
  struct caller *one = open_caller("libcaller-a.so");
  struct control *control = one->control;
  int to, from;
  open_library();
  control->sleep_ns = 2 * MILLISECOND;
  control->pageable = (uintptr_t)&from;
  CHECK(native.start(MILLISECOND) > 0);
  struct syncagent_slot *slot = native.own_slot();
  errno = ENOTTY;
  one->copy_async(&to, &from, 9);
  EQUAL(take_one().flags, 0);
  EQUAL(slot->unnamed_waits, 1);
  one->copy_async(&from, &to, 9);
  EQUAL(take_one().flags, 0);
  one->copy_async(&to, &to + 1, 9);
  EQUAL(take_one().flags, SYNCAGENT_QUEUE_FULL);
  EQUAL(slot->unnamed_waits, 2); /* that one was not a sync */
  one->copy_to_symbol(&from, &to); /* a symbol's address is never pageable memory */
  EQUAL(take_one().flags, SYNCAGENT_QUEUE_FULL);
  one->copy_to_symbol(&to, &from);
  EQUAL(take_one().flags, 0);
  EQUAL(errno, ENOTTY);

  const int asked = control->asked;
  one->copy(9, 1); /* synchronous: always a wait */
  EQUAL(take_one().flags, 0);
  control->result = 2; /* failed copies are not asked about */
  one->copy_async(&to, &to + 1, 9);
  EQUAL(take_one().flags, 0);
  control->result = 0;
  control->last_error = 7; /* an error that the program has yet to fetch stays */
  one->copy_async(&to, &to + 1, 9);
  EQUAL(take_one().flags, 0);
  EQUAL(control->last_error, 7);
  EQUAL(control->asked, asked);
  control->last_error = 0;
  control->fails = 1; /* an error of our question does not stay */
  one->copy_async(&to, &to + 1, 9);
  EQUAL(take_one().flags, 0);
  EQUAL(control->last_error, 0);
  CHECK(control->asked > asked);
  control->fails = 0;
  control->sleep_ns = 0; /* short ones are not asked about */
  const int asked_then = control->asked;
  native.start(3600ull * 1000 * MILLISECOND);
  one->copy_async(&to, &to + 1, 9);
  EQUAL(control->asked, asked_then);
}

static void errno_is_kept(void) {
  struct caller *one = open_caller("libcaller-a.so");
  open_library();
  CHECK(native.start(0) > 0);
  errno = EXDEV;
  one->stream(); /* takes the slot */
  EQUAL(errno, EXDEV);
  one->stream();
  EQUAL(errno, EXDEV);
  one->control->error = ENOLINK;
  one->stream();
  EQUAL(errno, ENOLINK);
}

static struct caller *inner;
static void call_inside(void) { inner->device(); }

static void nested_calls_are_part_of_the_outermost(void) {
  struct caller *one = open_caller("libcaller-a.so");
  inner = open_caller("libcaller-b.so");
  open_library();
  CHECK(native.start(0) > 0);
  one->control->inside = (uintptr_t)call_inside;
  inner->control->sleep_ns = MILLISECOND;
  one->stream();
  const struct syncagent_wait wait = take_one();
  EQUAL(wait.function, number_of("cudaStreamSynchronize"));
  CHECK(wait.end_ns - wait.start_ns >= MILLISECOND);
  EQUAL(inner->control->calls, 1);
  EQUAL(native.own_slot()->number, 1);
  EQUAL(sum_of("cudaDeviceSynchronize", 0), 0);
  inner->device();
  EQUAL(take_one().function, number_of("cudaDeviceSynchronize"));
}

/* ---- what is patched ---- */

static void each_runtime_has_wrappers_of_its_own(void) {
  struct caller *a = open_caller("libcaller-a.so"), *b = open_caller("libcaller-b.so");
  open_library();
  CHECK(a->control != b->control);
  const uintptr_t before = a->address();
  CHECK(b->address() != before);
  CHECK(native.start(0) > 0);
  EQUAL(status_now().runtimes, 2);
  EQUAL(status_now().objects, 2);
  EQUAL(status_now().foreign, 0);
  CHECK(a->address() != before && a->address() != b->address());
  a->control->result = 1;
  b->control->result = 2;
  EQUAL(a->stream(), 1);
  EQUAL(b->stream(), 2);
  EQUAL(a->device(), 1);
  EQUAL(b->device(), 2);
  EQUAL(take_all(), 4);
  native.stop();
  CHECK(a->address() == before);
  EQUAL(status_now().entries, 0);
}

static void objects_opened_later_are_found(void) {
  open_library();
  EQUAL(native.start(0), 0);
  EQUAL(status_now().runtimes, 0);
  struct caller *a = open_caller("libcaller-a.so"); /* the first runtime comes with it */
  a->stream();
  EQUAL(take_all(), 0);
  const int first = native.walk(0);
  CHECK(first > 0);
  EQUAL(status_now().runtimes, 1);
  EQUAL(status_now().entries, first);
  a->stream();
  EQUAL(take_all(), 1);
  EQUAL(native.walk(0), 0);
  EQUAL(native.walk(1), 0);
  struct caller *later = open_caller("libcaller-later.so"), *b = open_caller("libcaller-b.so");
  CHECK(native.walk(0) > 0);
  EQUAL(status_now().runtimes, 2);
  EQUAL(status_now().objects, 3);
  later->stream();
  b->stream();
  EQUAL(take_all(), 2);
}

static void five_runtimes_are_one_too_many(void) {
  struct caller *callers[5];
  char name[] = "libcaller-A.so";
  for (int i = 0; i < 5; i++) {
    name[10] = (char)('a' + i);
    callers[i] = open_caller(name);
    callers[i]->control->result = i;
  }
  open_library();
  CHECK(native.start(0) > 0);
  EQUAL(status_now().runtimes, 4);
  CHECK(status_now().foreign > 0);
  for (int i = 0; i < 5; i++) EQUAL(callers[i]->stream(), i);
  EQUAL(take_all(), 4);
}

static void entries_bound_later_are_found(void) {
  struct caller *lazy = open_caller("libcaller-lazy.so");
  open_library();
  native.start(0);
  const struct syncagent_status before = status_now();
  CHECK(before.unresolved > 0);
  EQUAL(before.foreign, 0);
  lazy->device(); /* bound by this call, and not seen */
  EQUAL(take_all(), 0);
  EQUAL(native.walk(0), 1);
  EQUAL(status_now().unresolved, before.unresolved - 1);
  lazy->device();
  EQUAL(take_one().function, number_of("cudaDeviceSynchronize"));
  lazy->event();
  EQUAL(native.walk(1), 1);
  native.stop();
  lazy->device();
  EQUAL(lazy->free(), 0); /* what has never been bound can still be */
  EQUAL(take_all(), 0);
}

static void read_only_entries_are_read_only_again(void) {
  void *object = open_object("libcaller-now.so");
  struct caller *now = caller_of(object);
  uintptr_t *entry = entry_of(object, "cudaDeviceSynchronize");
  open_library();
  CHECK(strcmp(protection_of(entry), "r--") == 0);
  const uintptr_t before = *entry;
  CHECK(native.start(0) > 0);
  CHECK(*entry != before);
  CHECK(strcmp(protection_of(entry), "r--") == 0);
  EQUAL(status_now().read_only, 0);
  EQUAL(status_now().unresolved, 0);
  now->device();
  EQUAL(take_all(), 1);
  native.stop();
  CHECK(*entry == before);
  CHECK(strcmp(protection_of(entry), "r--") == 0);
}

static void pointers_in_data_are_patched(void) {
  struct caller *table = open_caller("libcaller-table.so");
  const uintptr_t before = table->address();
  open_library();
  CHECK(native.start(0) > 0);
  CHECK(table->address() != before);
  ((int (*)(void *))table->address())(NULL);
  EQUAL(take_one().function, number_of("cudaStreamSynchronize"));
  native.stop();
  CHECK(table->address() == before);
}

static void objects_that_export_nothing_are_patched(void) {
  struct caller *hidden;
  open_object("libcaller-hidden.so");
  CHECK(sscanf(getenv("HIDDEN_CALLER"), "%p", (void **)&hidden) == 1);
  open_library();
  CHECK(native.start(0) > 0);
  hidden->stream();
  hidden->device();
  EQUAL(take_all(), 2);
}

static void objects_that_are_being_loaded_are_left_alone(void) {
  void *object = open_object("libcaller-now.so");
  struct caller *now = caller_of(object);
  uintptr_t *entry = entry_of(object, "cudaDeviceSynchronize");
  open_library();
  const uintptr_t before = *entry;
  protect(entry, PROT_READ | PROT_WRITE); /* as the loader has it before it is done */
  native.start(0);
  CHECK(*entry == before);
  CHECK(strcmp(protection_of(entry), "rw-") == 0);
  CHECK(status_now().unresolved > 0);
  native.walk(0);
  CHECK(*entry == before);
  protect(entry, PROT_READ);
  CHECK(native.walk(0) > 0);
  CHECK(*entry != before);
  CHECK(strcmp(protection_of(entry), "r--") == 0);
  now->device();
  EQUAL(take_all(), 1);
}

#if defined(__x86_64__)
#define THIS_MACHINE AUDIT_ARCH_X86_64
#else
#define THIS_MACHINE AUDIT_ARCH_AARCH64
#endif

static void entries_that_stay_read_only_are_counted(void) {
  struct caller *now = open_caller("libcaller-now.so"), *a = open_caller("libcaller-later.so");
  open_library();
  /* From here on, making anything writable fails. */
  struct sock_filter filter[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, THIS_MACHINE, 0, 4),
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_mprotect, 0, 2),
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[2])),
      BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, PROT_WRITE, 1, 0),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EACCES),
  };
  struct sock_fprog program = {sizeof filter / sizeof *filter, filter};
  if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0)
    _exit(UNAVAILABLE);
  native.start(0);
  CHECK(status_now().read_only > 0);
  CHECK(status_now().entries > 0); /* those of the other object are not read-only */
  now->device();
  EQUAL(take_all(), 0);
  a->stream();
  EQUAL(take_all(), 1);
  native.walk(0);
  CHECK(status_now().read_only > 0);
  native.stop();
  a->stream();
  EQUAL(take_all(), 0);
}

static _Atomic(int) foreign_calls;
static _Atomic(uintptr_t) foreign_next;
static int foreign(void *stream) {
  foreign_calls++;
  return foreign_next != 0 ? ((int (*)(void *))foreign_next)(stream) : 5;
}

static void entries_of_other_tools_are_left_alone(void) {
  void *object = open_object("libcaller-open.so"), *other = open_object("libcaller-later.so");
  struct caller *before = caller_of(object), *after = caller_of(other);
  open_library();
  uintptr_t *entry = entry_of(object, "cudaStreamSynchronize"), *other_entry = entry_of(other, "cudaStreamSynchronize");
  *entry = (uintptr_t)foreign; /* before us */
  native.start(0);
  CHECK(*entry == (uintptr_t)foreign);
  EQUAL(status_now().foreign, 1);
  EQUAL(before->stream(), 5);
  EQUAL(take_all(), 0);
  before->device();
  EQUAL(take_all(), 1);

  const uintptr_t ours = *other_entry;
  foreign_next = ours; /* after us: it goes on to our wrapper */
  *other_entry = (uintptr_t)foreign;
  native.walk(0);
  EQUAL(status_now().foreign, 2);
  CHECK(*other_entry == (uintptr_t)foreign);
  after->stream();
  EQUAL(take_all(), 1);
  native.stop();
  CHECK(*entry == (uintptr_t)foreign && *other_entry == (uintptr_t)foreign);
  after->control->result = 3;
  EQUAL(after->stream(), 3); /* through our wrapper, which passes it on */
  EQUAL(foreign_calls, 3);
  EQUAL(take_all(), 0);
  EQUAL(native.own_slot()->number, 2);
}

static void copied_pointers_pass_through_after_stop(void) {
  struct caller *a = open_caller("libcaller-a.so");
  open_library();
  native.start(0);
  int (*const copied)(void *) = (int (*)(void *))a->address();
  copied(NULL);
  EQUAL(take_all(), 1);
  native.stop();
  CHECK(a->address() != (uintptr_t)copied);
  a->control->result = 8;
  EQUAL(copied(NULL), 8);
  EQUAL(take_all(), 0);
  EQUAL(native.walk(0), -1);
  CHECK(native.start(0) > 0);
  EQUAL(copied(NULL), 8);
  EQUAL(take_all(), 1);
}

static void closed_objects_are_not_restored(void) {
  struct caller *a = open_caller("libcaller-a.so");
  void *later = open_object("libcaller-later.so");
  open_library();
  const uintptr_t before = a->address();
  native.start(0);
  EQUAL(status_now().objects, 2);
  uintptr_t *entry = entry_of(later, "cudaStreamSynchronize");
  CHECK(dlclose(later) == 0);
  EQUAL(strlen(protection_of(entry)), 0); /* it is gone */
  native.walk(0);
  EQUAL(status_now().objects, 1);
  native.stop();
  CHECK(a->address() == before);
  native.start(0);
  EQUAL(status_now().objects, 1);
  later = open_object("libcaller-later.so");
  native.walk(0);
  caller_of(later)->stream();
  EQUAL(take_all(), 1);
  CHECK(dlclose(later) == 0);
  native.stop();
}

/* ---- threads ---- */

static void *one_wait(void *caller) {
  ((struct caller *)caller)->stream();
  return NULL;
}

static void slots_are_used_again(void) {
  struct caller *a = open_caller("libcaller-a.so");
  open_library();
  native.start(0);
  uint64_t numbers = 0;
  for (int i = 0; i < 5000; i++) pthread_join(start_thread(one_wait, a), NULL);
  EQUAL(take_all(), 5000);
  for (int i = 0; i < native.slot_count(); i++) {
    EQUAL(native.slots()[i].tid, 0);
    numbers += native.slots()[i].number; /* never goes back */
  }
  EQUAL(numbers, 5000);
  EQUAL(status_now().threads_without_slot, 0);
  EQUAL(native.slots()[0].number, 5000); /* one slot was enough */
  EQUAL(sum_of("cudaStreamSynchronize", 0), 5000);
}

static void slots_are_freed_without_a_cheap_key(void) {
  struct caller *a = open_caller("libcaller-a.so");
  pthread_key_t key;
  for (int i = 0; i < 40; i++) CHECK(pthread_key_create(&key, NULL) == 0);
  open_library();
  native.start(0);
  for (int round = 0; round < 5; round++) {
    pthread_t threads[100];
    for (int i = 0; i < 100; i++) threads[i] = start_thread(one_wait, a);
    for (int i = 0; i < 100; i++) pthread_join(threads[i], NULL);
    a->stream();
    struct timespec until = {.tv_sec = 0};
    int taken;
    do { /* the kernel may still know a thread that has been joined */
      native.walk(0);
      taken = 0;
      for (int i = 0; i < native.slot_count(); i++) taken += native.slots()[i].tid != 0;
      sched_yield();
    } while (taken > 1 && until.tv_sec++ < 10000);
    EQUAL(taken, 1); /* ours */
  }
  EQUAL(take_all(), 505);
  EQUAL(status_now().threads_without_slot, 0);
}

static pthread_barrier_t barrier;
static void *wait_together(void *caller) {
  one_wait(caller);
  pthread_barrier_wait(&barrier);
  pthread_barrier_wait(&barrier);
  one_wait(caller); /* without a slot, counted once */
  return NULL;
}

static void threads_without_a_slot_are_counted(void) {
  enum { THREADS = 1100 };
  struct caller *a = open_caller("libcaller-a.so");
  static pthread_t threads[THREADS];
  pthread_attr_t small;
  open_library();
  native.start(0);
  pthread_barrier_init(&barrier, NULL, THREADS + 1);
  pthread_attr_init(&small);
  pthread_attr_setstacksize(&small, 128 * 1024);
  for (int i = 0; i < THREADS; i++)
    if (pthread_create(&threads[i], &small, wait_together, a) != 0) _exit(UNAVAILABLE);
  pthread_barrier_wait(&barrier);
  EQUAL(status_now().threads_without_slot, THREADS - native.slot_count());
  EQUAL(take_all(), native.slot_count());
  CHECK(native.own_slot() == NULL);
  EQUAL(status_now().threads_without_slot, THREADS - native.slot_count() + 1);
  a->stream(); /* passes through */
  EQUAL(take_all(), 0);
  EQUAL(status_now().threads_without_slot, THREADS - native.slot_count() + 1);
  pthread_barrier_wait(&barrier);
  for (int i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);
  EQUAL(a->control->calls, 2 * THREADS + 1);
  CHECK(status_now().threads_without_slot <= (uint64_t)THREADS);
  take_all();
  CHECK(native.own_slot() != NULL); /* there is room again */
  a->stream();
  EQUAL(take_all(), 1);
}

static void full_rings_count_what_they_drop(void) {
  struct caller *a = open_caller("libcaller-a.so");
  open_library();
  native.start(0);
  for (int round = 0; round < 3; round++) {
    for (int i = 0; i < 65536 + 100; i++) a->stream();
    EQUAL(status_now().dropped, 100 * (round + 1));
    EQUAL(take_all(), 65536);
  }
  struct syncagent_wait wait;
  for (int i = 0; i < 1000; i++) {
    a->stream();
    EQUAL(native.take(&wait, 1), 1);
    EQUAL(wait.number, native.own_slot()->number);
  }
  EQUAL(status_now().dropped, 300);
}

static void cancelled_threads_leave_their_slot_closed(void) {
  struct caller *a = open_caller("libcaller-a.so");
  void *result;
  open_library();
  native.start(0);
  for (int i = 0; i < 20; i++) {
    const pthread_t thread = start_held_wait(a);
    struct syncagent_slot *slot = held.slot;
    CHECK(slot->start_ns != 0);
    CHECK(pthread_cancel(thread) == 0);
    CHECK(pthread_join(thread, &result) == 0);
    CHECK(result == PTHREAD_CANCELED);
    EQUAL(slot->start_ns, 0);
    EQUAL(slot->tid, 0);
    EQUAL(slot->number, 2 * i + 1);
    EQUAL(status_now().dropped, i + 1); /* the wait itself is lost */
    pthread_join(start_thread(one_wait, a), NULL); /* and the slot is as good as new */
    EQUAL(slot->number, 2 * i + 2);
    EQUAL(take_all(), 1);
  }
}

static struct caller *handler_calls;
static _Atomic(int) handled;
static void handle(int signal) {
  (void)signal;
  const int error = errno;
  handler_calls->device();
  handled++;
  errno = error;
}

static void handle_signals_by_waiting(struct caller *caller) {
  handler_calls = caller;
  struct sigaction action = {.sa_handler = handle, .sa_flags = SA_RESTART};
  CHECK(sigaction(SIGUSR1, &action, NULL) == 0);
}

static void raise_inside(void) {
  handler_calls->control->inside = 0;
  raise(SIGUSR1);
}

static void signal_handlers_may_wait(void) {
  struct caller *a = open_caller("libcaller-a.so");
  open_library();
  native.start(0);
  handle_signals_by_waiting(a);
  raise(SIGUSR1); /* takes the slot */
  EQUAL(take_one().function, number_of("cudaDeviceSynchronize"));
  a->control->inside = (uintptr_t)raise_inside;
  a->stream(); /* the handler's wait is part of this one */
  EQUAL(handled, 2);
  EQUAL(take_one().function, number_of("cudaStreamSynchronize"));
  EQUAL(native.own_slot()->number, 2);
  EQUAL(sum_of("cudaDeviceSynchronize", 0), 1);
}

static _Atomic(bool) enough;
static _Atomic(uint64_t) calls_made;
static void *wait_again_and_again(void *caller) {
  uint64_t calls = 0;
  while (!enough) {
    ((struct caller *)caller)->stream();
    calls++;
    if (calls % 16 == 0) pause_ms(1);
    else sched_yield();
  }
  calls_made += calls;
  return NULL;
}

static void many_threads_and_restarts(void) {
  enum { THREADS = 200, RESTARTS = 1000 };
  struct caller *callers[2] = {open_caller("libcaller-a.so"), open_caller("libcaller-lazy.so")};
  static pthread_t threads[THREADS];
  const uintptr_t before = callers[0]->address();
  open_library();
  handle_signals_by_waiting(callers[1]);
  for (int i = 0; i < THREADS; i++) threads[i] = start_thread(wait_again_and_again, callers[i % 2]);
  for (int i = 0; i < RESTARTS; i++) {
    CHECK(native.start(0) > 0);
    if (i % 50 == 0) native.set_looks(1, 0);
    if (i % 3 == 0) native.walk(1);
    if (i % 2 == 0) pthread_kill(threads[i % THREADS], SIGUSR1);
    take_all();
    native.stop();
    EQUAL(status_now().entries, 0);
    CHECK(callers[0]->address() == before);
  }
  enough = true;
  for (int i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);
  EQUAL(handled, RESTARTS / 2);
  EQUAL(calls_made + handled, callers[0]->control->calls); /* both are linked with the same runtime */
  EQUAL(status_now().threads_without_slot, 0);
  for (int i = 0; i < native.slot_count(); i++) {
    EQUAL(native.slots()[i].tid, 0);
    EQUAL(native.slots()[i].start_ns, 0);
  }
}

static void *open_and_close(void *unused) {
  for (int i = 0; i < 500; i++) {
    void *later = open_object("libcaller-later.so"), *now = open_object("libcaller-now.so");
    caller_of(later)->stream();
    caller_of(now)->stream();
    CHECK(dlclose(now) == 0 && dlclose(later) == 0);
  }
  enough = true;
  return unused;
}

static void walks_beside_dlopen_and_dlclose(void) {
  struct caller *a = open_caller("libcaller-a.so");
  open_library();
  native.start(0);
  const pthread_t thread = start_thread(open_and_close, NULL);
  for (int i = 0; !enough; i++) {
    if (i % 100 == 99) native.stop(), native.start(0);
    CHECK(native.walk(i % 2) >= 0);
    a->stream();
  }
  pthread_join(thread, NULL);
  native.stop();
  take_all();
}

/* ---- looks ---- */

static void open_waits_are_told_of_once(void) {
  struct caller *a = open_caller("libcaller-a.so");
  uint32_t slots[4];
  uint64_t numbers[4];
  open_library();
  EQUAL(native.next_looks(slots, numbers, 4, 0), -1); /* not started */
  native.start(0);
  EQUAL(native.next_looks(slots, numbers, 4, 1), 0);
  native.set_looks(1, 50 * MILLISECOND); /* so that whoever asks has to be woken */
  EQUAL(native.next_looks(slots, numbers, 4, 20), 0);
  pthread_t thread = start_held_wait(a);
  EQUAL(native.next_looks(slots, numbers, 4, 600000), 1); /* woken by the watcher */
  CHECK(&native.slots()[slots[0]] == held.slot);
  EQUAL(numbers[0], 1);
  EQUAL(native.slots()[slots[0]].function, number_of("cudaStreamSynchronize"));
  CHECK(now_ns() - native.slots()[slots[0]].start_ns >= 50 * MILLISECOND);
  EQUAL(native.next_looks(slots, numbers, 4, 20), 0);
  let_go(thread);
  EQUAL(native.next_looks(slots, numbers, 4, 20), 0);
  EQUAL(status_now().looks_told, 1);
  native.set_looks(1, MILLISECOND);

  thread = start_held_wait(a); /* the same slot again */
  EQUAL(native.next_looks(slots, numbers, 4, 600000), 1);
  EQUAL(numbers[0], 2);
  let_go(thread);

  native.set_looks(0, MILLISECOND);
  thread = start_held_wait(a);
  EQUAL(native.next_looks(slots, numbers, 4, 20), 0);
  native.set_looks(1, MILLISECOND);
  ((struct syncagent_slot *)held.slot)->named = 1; /* from here on a sensor names it */
  EQUAL(native.next_looks(slots, numbers, 4, 20), 0);
  ((struct syncagent_slot *)held.slot)->named = 0;
  EQUAL(native.next_looks(slots, numbers, 4, 600000), 1);
  let_go(thread);
}

static void *look_until_stopped(void *unused) {
  uint32_t slots[4];
  uint64_t numbers[4];
  while (native.next_looks(slots, numbers, 4, 600000) >= 0) {
  }
  return unused;
}

static void lookers_are_sent_away_by_stop(void) {
  open_library();
  for (int i = 0; i < 20; i++) {
    native.start(0);
    native.set_looks(1, MILLISECOND);
    const pthread_t thread = start_thread(look_until_stopped, NULL);
    if (i % 2) pause_ms(5);
    native.stop();
    pthread_join(thread, NULL);
  }
}

/* Py_AddPendingCall, and what Python does with it. */
static _Atomic(int) added;
static _Atomic(uintptr_t) added_function, added_argument, called_with;
static _Atomic(uint64_t) added_by;
static int add_pending(int (*function)(void *), void *argument) {
  EQUAL(held.slot->start_ns, 0); /* the wait is over */
  added_argument = (uintptr_t)argument;
  added_function = (uintptr_t)function;
  added_by = (uint64_t)pthread_self();
  added++;
  errno = EAGAIN;
  return 0;
}
static int called(void *argument) {
  called_with = (uintptr_t)argument;
  return 0;
}
static void run_pending(void) { ((int (*)(void *))added_function)((void *)added_argument); }

/* A wait that is open for long enough that the looker is late; returns its number. */
static uint64_t seen_too_late(struct caller *a) {
  const pthread_t thread = start_held_wait(a);
  pause_ms(20);
  const uint64_t number = held.slot->number;
  const int before = added;
  let_go(thread);
  if (added > before) CHECK(pthread_equal((pthread_t)added_by, thread)); /* Python takes no notice where another adds it */
  return number;
}

static void late_lookers_are_stood_in_for(void) {
  struct caller *a = open_caller("libcaller-a.so");
  open_library();
  native.start(0);
  native.set_looks(1, MILLISECOND);
  native.pending((void *)add_pending, called, 1);
  seen_too_late(a); /* nobody is in next_looks, but this is not the main thread */
  EQUAL(added, 0);

  held.is_main = true;
  const uint64_t number = seen_too_late(a);
  EQUAL(added, 1);
  EQUAL(added_argument, number);
  seen_too_late(a); /* one call at a time */
  EQUAL(added, 1);
  EQUAL(called_with, 0);
  run_pending();
  EQUAL(called_with, number);
  EQUAL(seen_too_late(a), number + 2);
  EQUAL(added, 2);
  EQUAL(added_argument, number + 2);
  run_pending();
  EQUAL(called_with, number + 2);

  native.set_looks(1, 60000 * MILLISECOND);
  const pthread_t thread = start_held_wait(a); /* over before the looker is late */
  let_go(thread);
  EQUAL(added, 2);
  native.set_looks(1, MILLISECOND);

  seen_too_late(a);
  EQUAL(added, 3);
  native.stop();
  run_pending(); /* Python may come to it only now */
  EQUAL(called_with, number + 2);
}

static void calls_that_follow_at_once_are_known(void) {
  struct caller *a = open_caller("libcaller-a.so");
  open_library();
  native.start(0);
  struct syncagent_slot *slot = native.own_slot();
  pause_ms(1);
  a->stream();
  EQUAL(slot->first, slot->number);
  const uint64_t first = slot->number;
  for (int i = 0; i < 50; i++) { /* a signal or another process may come in between */
    pause_ms(1);
    a->copy_and_wait();
    if (slot->first == slot->number - 1) break;
  }
  EQUAL(slot->first, slot->number - 1);
  CHECK(slot->first > first);
  native.stop();
}

/* ---- how long the compute stream stands still for collectives ---- */

#define COMPUTE NULL
#define NCCL ((void *)16)
#define SIDE ((void *)32)
#define OTHER ((void *)48)
#define DEFAULT_MS 5 /* the collective itself, once all ranks have come to it */

static struct training *train;
static void *events[8]; /* the program's own */

static struct training *training_of(const char *name) {
  train = ((struct training * (*)(void)) find(open_object(name), "training"))();
  for (size_t i = 0; i < sizeof events / sizeof *events; i++) CHECK(train->create(&events[i]) == 0);
  train->device->takes_ns = DEFAULT_MS * MILLISECOND;
  train->device->now_ns = UINT64_MAX;
  return train;
}

static void measure(void) {
  training_of("libtraining.so");
  open_library();
  native.start(0);
  EQUAL(status_now().hooks, 0);
  CHECK(native.measure_joins(1) > 0);
  EQUAL(status_now().joins, SYNCAGENT_JOINS_ON);
}

static int take_joins(struct syncagent_join *into, int most) {
  const int contexts = train->device->contexts;
  const int taken = native.take_joins(into, most);
  EQUAL(train->device->contexts, contexts);
  EQUAL(train->device->asked_strictly, 0);
  return taken;
}

static int joins_taken(void) {
  struct syncagent_join joins[64];
  int all = 0, more;
  while ((more = take_joins(joins, 64)) > 0) all += more;
  return all;
}

static struct syncagent_join take_join(void) {
  struct syncagent_join joins[2];
  memset(joins, 0xff, sizeof joins);
  EQUAL(take_joins(joins, 2), 1);
  return joins[0];
}

/* torch's: NCCL's own stream waits for the compute stream, and that one for NCCL's later on. */
static void begin_reduce(void *from, void *nccl, void *done) {
  train->record(events[7], from);
  train->wait(nccl, events[7]);
  EQUAL(train->all_reduce(nccl), 0);
  train->record(done, nccl);
}

static void waits_for_gradients_are_measured(void) {
  measure();
  train->works(COMPUTE, 10 * MILLISECOND);
  begin_reduce(COMPUTE, NCCL, events[0]);
  train->works(COMPUTE, 2 * MILLISECOND);
  begin_reduce(COMPUTE, NCCL, events[1]); /* over at 20 ms */
  EQUAL(joins_taken(), 0);
  const uint64_t before = now_ns();
  train->wait(COMPUTE, events[0]); /* from 12 to 15 ms */
  train->wait(COMPUTE, events[1]);
  const uint64_t after = now_ns();
  struct syncagent_join joins[4];
  EQUAL(take_joins(joins, 4), 2);
  for (int i = 0; i < 2; i++) {
    CHECK(before <= joins[i].host_ns && joins[i].host_ns <= after);
    EQUAL(joins[i].waited_ns, (i == 0 ? 3 : 5) * MILLISECOND);
    EQUAL(joins[i].device, 0);
    EQUAL(joins[i].flags, SYNCAGENT_CAUGHT_UP); /* on this device all is done at once */
  }
  CHECK(joins[0].host_ns <= joins[1].host_ns);
  EQUAL(train->busy_until(COMPUTE), 20 * MILLISECOND);

  train->device->others_ns = 100 * MILLISECOND; /* the other ranks are late */
  begin_reduce(COMPUTE, NCCL, events[0]);
  train->device->device = 3;
  train->wait(COMPUTE, events[0]);
  struct syncagent_join join = take_join();
  EQUAL(join.waited_ns, 85 * MILLISECOND);
  EQUAL(join.device, 3);
  begin_reduce(COMPUTE, NCCL, events[0]);
  train->works(COMPUTE, 100 * MILLISECOND); /* hidden behind other work */
  train->wait(COMPUTE, events[0]);
  EQUAL(take_join().waited_ns, 0);
  EQUAL(status_now().joins_measured, 4);
  EQUAL(status_now().joins_dropped, 0);
  EQUAL(train->peek(), 0);
  EQUAL(take_all(), 0); /* none of this is a wait of the host */
}

static void other_streams_are_not_collectives(void) {
  measure();
  train->record(events[0], SIDE); /* a copy, before any collective ... */
  train->wait(COMPUTE, events[0]);
  begin_reduce(COMPUTE, NCCL, events[1]);
  train->record(events[0], SIDE); /* ... and after one */
  train->wait(COMPUTE, events[0]);
  train->record(events[2], COMPUTE); /* the compute stream itself is never behind one */
  train->wait(SIDE, events[2]);
  train->record(events[0], SIDE);
  train->wait(COMPUTE, events[0]);
  EQUAL(joins_taken(), 0);
  EQUAL(status_now().joins_measured, 0);
  train->wait(COMPUTE, events[1]);
  EQUAL(joins_taken(), 1);
}

static void events_recorded_anew_lose_their_mark(void) {
  measure();
  begin_reduce(COMPUTE, NCCL, events[0]);
  train->record(events[0], SIDE);
  train->wait(COMPUTE, events[0]);
  EQUAL(joins_taken(), 0);
  train->record_with_flags(events[0], NCCL);
  train->wait(COMPUTE, events[0]);
  EQUAL(joins_taken(), 1);
  train->wait(COMPUTE, events[0]); /* it has waited for this one already */
  EQUAL(joins_taken(), 0);
  train->record(events[0], NCCL); /* nothing has come to that stream since */
  train->wait(COMPUTE, events[0]);
  EQUAL(joins_taken(), 0);
  begin_reduce(COMPUTE, NCCL, events[0]);
  begin_reduce(COMPUTE, NCCL, events[1]);
  train->wait(COMPUTE, events[0]);
  train->record(events[0], NCCL); /* the second one is still to be waited for */
  train->wait(COMPUTE, events[0]);
  EQUAL(joins_taken(), 2);
}

/* FSDP2: the copy into the buffer, NCCL and the copy out of it have a stream each. */
static void chains_of_streams_are_followed(void) {
  measure();
  for (int layer = 0; layer < 3; layer++) {
    train->record(events[0], COMPUTE);
    train->wait(SIDE, events[0]);
    train->record(events[1], SIDE);
    train->wait(NCCL, events[1]);
    EQUAL(train->all_gather(NCCL), 0);
    train->record(events[2], NCCL);
    train->wait(SIDE, events[2]);
    train->works(SIDE, MILLISECOND);
    train->record(events[3], SIDE);
    EQUAL(joins_taken(), 0);
    train->wait(COMPUTE, events[3]);
    EQUAL(take_join().waited_ns, 6 * MILLISECOND);
    train->record(events[4], SIDE); /* once it has been waited for, the side stream is as any other */
    train->wait(COMPUTE, events[4]);
    EQUAL(joins_taken(), 0);
  }
  EQUAL(train->all_gather(SIDE), 0); /* newer torch: NCCL on the stream that is current */
  train->record(events[3], SIDE);
  train->wait(COMPUTE, events[3]);
  EQUAL(take_join().waited_ns, DEFAULT_MS * MILLISECOND);
}

static void a_join_says_how_far_the_host_is_ahead(void) {
  struct caller *one = open_caller("libcaller-a.so");
  measure();
  for (int round = 0; round < 4; round++) {
    begin_reduce(COMPUTE, NCCL, events[0]);
    train->device->now_ns = round == 1 ? 0 : UINT64_MAX; /* by the second, the first is not over yet */
    if (round == 2) one->stream();                       /* the host waits */
    train->wait(COMPUTE, events[0]);
    EQUAL(train->peek(), 0); /* "not ready" is no error that the program would find */
  }
  struct syncagent_join joins[4];
  EQUAL(take_joins(joins, 4), 4);
  EQUAL(joins[0].flags, SYNCAGENT_CAUGHT_UP);
  EQUAL(joins[1].flags, 0);
  EQUAL(joins[2].flags, SYNCAGENT_CAUGHT_UP | SYNCAGENT_HOST_WAITED);
  EQUAL(joins[3].flags, SYNCAGENT_CAUGHT_UP);
  EQUAL(train->device->asked_strictly, 0);
}

static void collectives_on_the_compute_stream_are_measured(void) {
  measure();
  train->works(COMPUTE, MILLISECOND);
  train->device->others_ns = 8 * MILLISECOND;
  EQUAL(train->all_reduce(COMPUTE), 0);
  struct syncagent_join join = take_join();
  EQUAL(join.waited_ns, (7 + DEFAULT_MS) * MILLISECOND);
  EQUAL(join.flags, SYNCAGENT_DIRECT | SYNCAGENT_CAUGHT_UP);

  train->group_start(); /* one join for all of a group */
  train->group_start();
  train->send(COMPUTE);
  train->receive(COMPUTE);
  train->group_end();
  EQUAL(joins_taken(), 0);
  train->group_end();
  join = take_join();
  EQUAL(join.waited_ns, 2 * DEFAULT_MS * MILLISECOND);
  EQUAL(join.flags, SYNCAGENT_DIRECT | SYNCAGENT_CAUGHT_UP);

  train->group_start();
  train->group_end();
  EQUAL(joins_taken(), 0);
  train->device->nccl_result = 7; /* still in progress, or failed */
  EQUAL(train->all_reduce(COMPUTE), 7);
  train->group_start();
  train->all_reduce(COMPUTE);
  EQUAL(train->group_end(), 7);
  EQUAL(joins_taken(), 0);
  train->device->nccl_result = 0;
  train->group_start();
  train->all_reduce(NCCL);
  train->group_end();
  EQUAL(joins_taken(), 0);
  train->record(events[0], NCCL);
  train->wait(COMPUTE, events[0]);
  EQUAL(joins_taken(), 1);
}

static void another_compute_stream_can_be_named(void) {
  measure();
  native.compute_stream((uintptr_t)OTHER);
  begin_reduce(OTHER, NCCL, events[0]);
  train->wait(OTHER, events[0]);
  EQUAL(take_join().waited_ns, DEFAULT_MS * MILLISECOND);
  EQUAL(train->all_reduce(OTHER), 0);
  EQUAL(take_join().flags, SYNCAGENT_DIRECT | SYNCAGENT_CAUGHT_UP);
  train->record(events[1], OTHER); /* what the default stream waits for is the computation */
  train->wait(COMPUTE, events[1]);
  EQUAL(joins_taken(), 0);
  native.compute_stream(0);
  begin_reduce(COMPUTE, NCCL, events[0]);
  train->wait(COMPUTE, events[0]);
  EQUAL(joins_taken(), 1);
}

static void nothing_is_recorded_in_captures(void) {
  measure();
  native.compute_stream((uintptr_t)OTHER);
  begin_reduce(OTHER, NCCL, events[0]);
  train->device->capturing = (uintptr_t)OTHER + 1;
  const int recorded = train->device->recorded;
  train->wait(OTHER, events[0]);
  EQUAL(train->device->recorded, recorded);
  EQUAL(train->all_reduce(OTHER), 0);
  train->device->capturing = 0;
  begin_reduce(OTHER, NCCL, events[0]);
  train->device->captured_by_waiting = (uintptr_t)OTHER + 1; /* the wait makes it part of a capture */
  train->wait(OTHER, events[0]);
  EQUAL(train->device->captured, 0);
  EQUAL(joins_taken(), 0);
  train->device->capturing = train->device->captured_by_waiting = 0;

  native.compute_stream(0);
  begin_reduce(COMPUTE, NCCL, events[0]);
  train->device->captures_elsewhere = 1; /* the default stream may not be asked now */
  train->wait(COMPUTE, events[0]);
  EQUAL(train->peek(), 0);
  train->device->captures_elsewhere = 0;
  EQUAL(joins_taken(), 0);
  EQUAL(status_now().joins, SYNCAGENT_JOINS_ON);
  begin_reduce(COMPUTE, NCCL, events[0]);
  train->wait(COMPUTE, events[0]);
  EQUAL(joins_taken(), 1);
}

static void old_runtimes_are_left_alone(void) {
  training_of("libtraining-old.so"); /* cannot say whether a stream is captured */
  open_library();
  native.start(0);
  CHECK(native.measure_joins(1) > 0);
  begin_reduce(COMPUTE, NCCL, events[0]);
  const int recorded = train->device->recorded;
  train->wait(COMPUTE, events[0]);
  EQUAL(train->all_reduce(COMPUTE), 0);
  EQUAL(train->device->recorded, recorded);
  EQUAL(joins_taken(), 0);
}

static void joins_are_taken_when_they_are_over(void) {
  struct syncagent_join joins[2];
  measure();
  train->device->now_ns = 0;
  for (int i = 0; i < 3; i++) { /* over at 5, 10 and 15 ms */
    begin_reduce(COMPUTE, NCCL, events[0]);
    train->wait(COMPUTE, events[0]);
  }
  EQUAL(joins_taken(), 0);
  EQUAL(train->peek(), 0); /* "not ready" is no error */
  train->device->now_ns = 10 * MILLISECOND;
  EQUAL(take_joins(joins, 1), 1);
  EQUAL(take_joins(joins, 2), 1);
  EQUAL(joins_taken(), 0);
  train->device->now_ns = 15 * MILLISECOND;
  EQUAL(joins_taken(), 1);
  const int created = train->device->created;
  for (int i = 0; i < 100; i++) {
    begin_reduce(COMPUTE, NCCL, events[0]);
    train->wait(COMPUTE, events[0]);
    train->device->now_ns = UINT64_MAX;
    EQUAL(joins_taken(), 1);
  }
  EQUAL(train->device->created, created); /* events are used again */
}

static void joins_without_events_are_counted(void) {
  measure();
  train->device->now_ns = 0;
  for (int i = 0; i < 2048 + 10; i++) {
    begin_reduce(COMPUTE, NCCL, events[0]);
    EQUAL(train->wait(COMPUTE, events[0]), 0);
  }
  EQUAL(status_now().joins_dropped, 10);
  EQUAL(train->device->created, 2 * 2048);
  train->device->now_ns = UINT64_MAX;
  for (int round = 0; round < 3; round++) {
    EQUAL(joins_taken(), round == 0 ? 2048 : 100);
    for (int i = 0; i < 100; i++) EQUAL(train->all_reduce(COMPUTE), 0);
  }
  EQUAL(status_now().joins_dropped, 10);
}

static void *take_on_a_thread(void *unused) {
  joins_taken();
  return unused;
}

static void failing_calls(enum event_call call, int where) {
  measure();
  begin_reduce(COMPUTE, NCCL, events[0]);
  train->wait(COMPUTE, events[0]);
  EQUAL(joins_taken(), 1);
  train->device->device = call == CREATE ? 1 : 0; /* has no events yet */
  train->device->fails_with = 46;
  begin_reduce(COMPUTE, NCCL, events[0]);
  if (call == RECORD || call == QUERY || call == ELAPSED) train->wait(COMPUTE, events[0]);
  if (call == RECORD) EQUAL(joins_taken(), 1);
  if (call == RECORD) begin_reduce(COMPUTE, NCCL, events[0]);
  train->device->fails = (int)call;
  EQUAL(train->wait(COMPUTE, events[0]), 0);
  pthread_join(start_thread(take_on_a_thread, NULL), NULL);
  EQUAL(train->peek(), 0); /* the program does not see it */
  const struct syncagent_status status = status_now();
  EQUAL(status.joins, SYNCAGENT_JOINS_FAILED);
  EQUAL(status.failed_at, where);
  EQUAL(status.failed_with, 46);
  train->device->fails = 0;
  const int recorded = train->device->recorded;
  EQUAL(train->all_reduce(COMPUTE), 0);
  EQUAL(train->device->recorded, recorded);
  native.measure_joins(0);
  native.measure_joins(1); /* for good */
  EQUAL(status_now().joins, SYNCAGENT_JOINS_FAILED);
  EQUAL(train->all_reduce(COMPUTE), 0);
  EQUAL(joins_taken(), 0);
}

static void failing_devices_end_it(void) { failing_calls(DEVICE, SYNCAGENT_FAILED_DEVICE); }
static void failing_captures_end_it(void) { failing_calls(CAPTURE, SYNCAGENT_FAILED_CAPTURE); }
static void failing_creations_end_it(void) { failing_calls(CREATE, SYNCAGENT_FAILED_CREATE); }
static void failing_records_end_it(void) { failing_calls(RECORD, SYNCAGENT_FAILED_RECORD); }
static void failing_queries_end_it(void) { failing_calls(QUERY, SYNCAGENT_FAILED_QUERY); }
static void failing_times_end_it(void) { failing_calls(ELAPSED, SYNCAGENT_FAILED_ELAPSED); }

static void errors_of_the_program_stay(void) {
  measure();
  begin_reduce(COMPUTE, NCCL, events[0]);
  struct control *control = open_caller("libcaller-a.so")->control;
  control->last_error = 7;
  errno = EXDEV;
  const int recorded = train->device->recorded;
  train->wait(COMPUTE, events[0]);
  EQUAL(train->device->recorded, recorded);
  EQUAL(train->get_error(), 7);
  EQUAL(status_now().joins_dropped, 1);
  begin_reduce(COMPUTE, NCCL, events[0]);
  train->wait(COMPUTE, events[0]);
  EQUAL(joins_taken(), 1);
}

static void a_reset_of_the_device_ends_it(void) {
  measure();
  train->reset();
  EQUAL(status_now().joins, SYNCAGENT_JOINS_ON); /* there was no event yet */
  EQUAL(train->all_reduce(COMPUTE), 0);
  train->reset();
  EQUAL(status_now().joins, SYNCAGENT_JOINS_FAILED);
  EQUAL(status_now().failed_at, SYNCAGENT_FAILED_RESET);
  EQUAL(joins_taken(), 0);
}

static void hooks_come_and_go(void) {
  training_of("libtraining.so");
  const uintptr_t wait = train->wait_address(), reduce = train->reduce_address();
  open_library();
  EQUAL(native.measure_joins(1), -1); /* not started */
  CHECK(native.start(0) > 0);
  const int entries = (int)status_now().entries;
  CHECK(train->wait_address() == wait && train->reduce_address() == reduce);
  const int hooks = native.measure_joins(1);
  CHECK(hooks > 0);
  EQUAL(status_now().entries, entries);
  EQUAL(status_now().hooks, hooks);
  EQUAL(status_now().hooks_missed, 0);
  CHECK(train->wait_address() != wait && train->reduce_address() != reduce);
  int (*const copied_wait)(void *, void *, unsigned) = (int (*)(void *, void *, unsigned))train->wait_address();
  begin_reduce(COMPUTE, NCCL, events[0]);
  train->wait(COMPUTE, events[0]);
  begin_reduce(COMPUTE, NCCL, events[0]);
  EQUAL(native.measure_joins(0), 0);
  CHECK(train->wait_address() == wait && train->reduce_address() == reduce);
  EQUAL(status_now().joins, SYNCAGENT_JOINS_OFF);
  const int recorded = train->device->recorded;
  EQUAL(copied_wait(COMPUTE, events[0], 0), 0); /* passes through */
  EQUAL(train->device->recorded, recorded);

  train->group_start(); /* a group that ends unseen, or begins so, holds nothing up */
  EQUAL(native.measure_joins(1), hooks);
  EQUAL(joins_taken(), 0); /* the one from before the stop is not returned */
  train->group_end();
  train->group_start();
  train->all_reduce(COMPUTE);
  native.stop();
  EQUAL(status_now().hooks, 0);
  CHECK(train->wait_address() == wait && train->reduce_address() == reduce);
  train->group_end();
  EQUAL(native.start(0), entries);
  EQUAL(status_now().hooks, 0); /* off by default, again */
  EQUAL(native.measure_joins(1), hooks);
  EQUAL(train->all_reduce(COMPUTE), 0);
  EQUAL(joins_taken(), 1);
}

static void libraries_opened_later_have_hooks(void) {
  open_library();
  native.start(0);
  EQUAL(native.measure_joins(1), 0);
  EQUAL(status_now().joins, SYNCAGENT_JOINS_WITHOUT_DRIVER);
  training_of("libtraining.so");
  EQUAL(train->all_reduce(COMPUTE), 0);
  CHECK(native.walk(0) > 0);
  EQUAL(status_now().joins, SYNCAGENT_JOINS_ON);
  EQUAL(train->all_reduce(COMPUTE), 0);
  EQUAL(joins_taken(), 1);
}

static void stop_inside(void) { native.measure_joins(0); }

static void joins_that_a_stop_comes_into_are_left_out(void) {
  measure();
  for (int i = 0; i < 3000; i++) { /* no event is lost by it */
    begin_reduce(COMPUTE, NCCL, events[0]);
    train->device->inside = (uintptr_t)stop_inside;
    train->wait(COMPUTE, events[0]);
    EQUAL(joins_taken(), 0);
    CHECK(native.measure_joins(1) > 0);
  }
  EQUAL(train->device->created, 2);
}

static void many_streams_are_too_many(void) {
  measure();
  for (uintptr_t i = 1; i <= 1000; i++) train->all_reduce((void *)(i * 16));
  const uint64_t dropped = status_now().joins_dropped;
  CHECK(dropped > 0 && dropped < 1000);
  for (int i = 0; i < 100000; i++) { /* events that are destroyed, and their addresses used again */
    void *event;
    train->create(&event);
    begin_reduce(COMPUTE, NCCL, event);
    if (i % 2 == 0) train->wait(COMPUTE, event);
    if (i % 2 == 0) EQUAL(native.take_joins((struct syncagent_join[1]){{0}}, 1), 1);
    train->destroy(event);
  }
  EQUAL(status_now().joins_dropped, dropped);
}

static _Atomic(int) joins_made;
static void *train_again_and_again(void *number) {
  void *stream = (void *)((uintptr_t)number * 16), *done[2];
  train->create(&done[0]), train->create(&done[1]);
  int joins = 0;
  while (!enough) {
    train->record(done[0], COMPUTE);
    train->wait(stream, done[0]);
    train->all_reduce(stream);
    train->record(done[1], stream);
    train->wait(COMPUTE, done[1]);
    joins++;
    if (joins % 8 == 0) pause_ms(1);
  }
  joins_made += joins;
  train->destroy(done[0]), train->destroy(done[1]);
  return NULL;
}

static void many_threads_train(void) {
  enum { THREADS = 16 };
  pthread_t threads[THREADS];
  struct syncagent_join joins[256];
  measure();
  train->device->takes_ns = 0;
  for (uintptr_t i = 0; i < THREADS; i++) threads[i] = start_thread(train_again_and_again, (void *)(i + 1));
  uint64_t taken = 0, made = 0;
  for (int i = 0; i < 1000; i++) {
    taken += (uint64_t)native.take_joins(joins, 256);
    if (i % 100 == 99) { /* those that are not taken by then are left out */
      made += status_now().joins_measured;
      CHECK(taken <= made);
      native.measure_joins(0);
      CHECK(native.measure_joins(1) > 0);
    }
    if (i % 10 == 0) pause_ms(1);
  }
  enough = true;
  for (int i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);
  int more;
  while ((more = native.take_joins(joins, 256)) > 0) taken += (uint64_t)more;
  CHECK(taken > 0 && taken <= (uint64_t)joins_made);
  EQUAL(status_now().joins, SYNCAGENT_JOINS_ON);
  EQUAL(train->peek(), 0);
}

/* ---- fork ---- */

static void check_child(pid_t child) {
  int how;
  CHECK(waitpid(child, &how, 0) == child);
  if (WIFEXITED(how) && WEXITSTATUS(how) == 0) return;
  fprintf(stderr, "the child ended with %#x\n", how);
  _exit(1);
}

static void children_start_empty(void) {
  struct caller *a = open_caller("libcaller-a.so");
  uint32_t slots[4];
  uint64_t numbers[4];
  open_library();
  native.start(0);
  native.set_looks(1, 0);
  native.own_slot()->named = 1; /* the caller of fork goes on naming its call in the child */
  a->stream();
  native.own_slot()->named = 0;
  a->stream();
  const pthread_t thread = start_held_wait(a);
  struct syncagent_slot *own = native.own_slot(), *other = held.slot;
  const int entries = (int)status_now().entries;
  const pid_t child = fork();
  if (child == 0) {
    EQUAL(status_now().live, 0);
    EQUAL(status_now().entries, 0);
    EQUAL(other->start_ns, 0);
    EQUAL(other->tid, 0);
    CHECK(native.own_slot() == own); /* views of it stay right */
    EQUAL(own->tid, syscall(SYS_gettid));
    EQUAL(own->unnamed_waits, 0);
    EQUAL(sum_of("cudaStreamSynchronize", 0), 0);
    EQUAL(take_all(), 0);
    EQUAL(native.walk(1), -1);
    EQUAL(native.next_looks(slots, numbers, 4, 0), -1);
    a->stream(); /* passes through */
    EQUAL(sum_of("cudaStreamSynchronize", 0), 0);
    EQUAL(own->number, 2);
    EQUAL(native.start(0), entries);
    a->stream();
    EQUAL(take_one().number, 3);
    EQUAL(sum_of("cudaStreamSynchronize", 0), 1);
    EQUAL(status_now().dropped, 0);
    native.set_looks(1, 50 * MILLISECOND);
    const pthread_t another = start_held_wait(a);
    EQUAL(native.next_looks(slots, numbers, 4, 600000), 1);
    let_go(another);
    native.stop();
    a->stream();
    EQUAL(own->number, 3);
    _exit(0);
  }
  check_child(child);
  CHECK(other->start_ns != 0);
  EQUAL(take_all(), 1); /* the parent has what it had */
  let_go(thread);
  EQUAL(take_all(), 1);
  EQUAL(status_now().live, 1);
}

static void fork_inside(void) {
  handler_calls->control->inside = 0;
  const pid_t child = fork();
  if (child > 0) check_child(child);
  handled = child == 0;
}

static void children_of_a_wait_leave_it_in_peace(void) {
  struct caller *a = open_caller("libcaller-a.so");
  open_library();
  native.start(0);
  handler_calls = a;
  a->control->inside = (uintptr_t)fork_inside;
  a->stream(); /* returns twice */
  if (handled) {
    EQUAL(native.own_slot()->start_ns, 0);
    EQUAL(native.own_slot()->unnamed_waits, 0);
    native.start(0);
    EQUAL(take_all(), 0);
    a->stream();
    EQUAL(take_all(), 1);
    _exit(0);
  }
  EQUAL(take_all(), 1);
}

static void *walk_again_and_again(void *unused) {
  while (!enough) native.walk(1);
  return unused;
}

static int pass(struct dl_phdr_info *info, size_t size, void *data) { return (void)info, (void)size, (void)data, 0; }

static void children_of_a_walk_can_load(void) {
  struct caller *a = open_caller("libcaller-a.so");
  open_library();
  native.start(0);
  const pthread_t thread = start_thread(walk_again_and_again, NULL);
  for (int i = 0; i < 200; i++) {
    const pid_t child = fork();
    if (child == 0) {
      alarm(20);
      dl_iterate_phdr(pass, NULL); /* would hang with the loader's lock taken */
      CHECK(native.start(0) > 0);
      if (i % 20 == 0) open_caller("libcaller-later.so")->stream();
      native.walk(0);
      a->stream();
      CHECK(take_all() > 0);
      native.stop();
      _exit(0);
    }
    check_child(child);
  }
  enough = true;
  pthread_join(thread, NULL);
}

static void children_measure_anew(void) {
  measure();
  begin_reduce(COMPUTE, NCCL, events[0]);
  train->wait(COMPUTE, events[0]);
  begin_reduce(COMPUTE, NCCL, events[0]);
  train->group_start();
  const pid_t child = fork();
  if (child == 0) {
    const int recorded = train->device->recorded;
    train->wait(COMPUTE, events[0]);
    EQUAL(train->device->recorded, recorded);
    EQUAL(status_now().joins, SYNCAGENT_JOINS_OFF);
    EQUAL(joins_taken(), 0);
    EQUAL(native.measure_joins(1), -1);
    train->group_end();
    native.start(0);
    EQUAL(status_now().hooks, 0);
    CHECK(native.measure_joins(1) > 0);
    EQUAL(joins_taken(), 0);
    EQUAL(train->all_reduce(COMPUTE), 0);
    EQUAL(joins_taken(), 1);
    EQUAL(status_now().joins_measured, 1);
    _exit(0);
  }
  check_child(child);
  train->group_end();
  train->wait(COMPUTE, events[0]);
  EQUAL(joins_taken(), 2); /* the parent has what it had */
}

static void fork_inside_a_join(void) {
  const pid_t child = fork();
  if (child > 0) check_child(child);
  handled = child == 0;
}

static void children_of_a_join_leave_it_in_peace(void) {
  measure();
  begin_reduce(COMPUTE, NCCL, events[0]);
  train->device->inside = (uintptr_t)fork_inside_a_join;
  train->wait(COMPUTE, events[0]); /* returns twice */
  if (handled) {
    EQUAL(status_now().joins_measured, 0);
    native.start(0);
    native.measure_joins(1);
    EQUAL(joins_taken(), 0);
    EQUAL(train->all_reduce(COMPUTE), 0);
    EQUAL(joins_taken(), 1);
    _exit(0);
  }
  EQUAL(joins_taken(), 1);
}

static void *walk_once(void *unused) {
  held.inside = true;
  native.walk(1);
  return unused;
}

static pthread_t walker;
static void fork_in_constructor(void) {
  held.inside = false;
  walker = start_thread(walk_once, NULL);
  while (!held.inside) pause_ms(1);
  pause_ms(50); /* it waits for this constructor to end, to look up the runtime that has come with it */
  const pid_t child = fork();
  if (child == 0) _exit(0);
  check_child(child);
}

static void children_of_a_constructor_do_not_hang(void) {
  char text[32];
  open_library();
  native.start(0);
  snprintf(text, sizeof text, "%p", (void *)fork_in_constructor);
  setenv("IN_CONSTRUCTOR", text, 1);
  alarm(60);
  open_object("libcaller-hidden.so");
  pthread_join(walker, NULL);
  CHECK(status_now().entries > 0);
}

/* ---- programs for soak.py and instructions.py ---- */

static long words_after[3];

static long resident_kb(void) {
  long pages = 0;
  FILE *statm = fopen("/proc/self/statm", "r");
  CHECK(statm != NULL && fscanf(statm, "%*d %ld", &pages) == 1);
  fclose(statm);
  return pages * (sysconf(_SC_PAGESIZE) / 1024);
}

static _Atomic(uint64_t) waits_made;
static long pace_us;
static void *wait_at_a_pace(void *caller) {
  while (!enough) {
    for (int i = 0; i < 10; i++) ((struct caller *)caller)->stream();
    waits_made += 10;
    const struct timespec time = {.tv_sec = pace_us / 1000000, .tv_nsec = pace_us % 1000000 * 1000};
    clock_nanosleep(CLOCK_MONOTONIC, 0, &time, NULL);
  }
  return NULL;
}

/* soak SECONDS WAITS THREADS: so many waits, and so many threads that end after one, in that time. */
static void soak(void) {
  enum { WORKERS = 8 };
  const uint64_t begun = now_ns(), lasts = (uint64_t)words_after[0] * 1000000000u;
  const long wanted = words_after[1], short_threads = words_after[2];
  pace_us = (long)((double)words_after[0] * 1e6 * WORKERS * 10 / (double)wanted);
  struct caller *a = open_caller("libcaller-a.so");
  open_library();
  native.start(0);
  native.set_looks(1, MILLISECOND);
  pthread_t workers[WORKERS];
  const pthread_t looker = start_thread(look_until_stopped, NULL);
  for (int i = 0; i < WORKERS; i++) workers[i] = start_thread(wait_at_a_pace, a);
  uint64_t taken = 0, elapsed = 0, walked = 0;
  long ended = 0, warm_kb = 0, most_kb = 0;
  for (; elapsed < lasts; elapsed = now_ns() - begun) {
    while (ended < short_threads && (uint64_t)ended * lasts < elapsed * (uint64_t)short_threads) {
      CHECK(pthread_join(start_thread(one_wait, a), NULL) == 0);
      ended++;
    }
    taken += (uint64_t)take_all();
    sum_of("cudaStreamSynchronize", 0);
    if (elapsed - walked >= 1000000000u) {
      walked = elapsed;
      native.walk(1);
      const long kb = resident_kb();
      if (warm_kb == 0 && taken > 70000) warm_kb = kb; /* the ring has been written once */
      if (warm_kb != 0 && kb > most_kb) most_kb = kb;
    }
    pause_ms(5);
  }
  enough = true;
  for (int i = 0; i < WORKERS; i++) pthread_join(workers[i], NULL);
  taken += (uint64_t)take_all();
  const struct syncagent_status status = status_now();
  const uint64_t summed = sum_of("cudaStreamSynchronize", 0);
  native.stop();
  pthread_join(looker, NULL);
  int slots = 0;
  for (int i = 0; i < native.slot_count(); i++) slots += native.slots()[i].tid != 0;
  printf("{\"seconds\": %ld, \"waits\": %llu, \"taken\": %llu, \"summed\": %llu, \"dropped\": %llu, \"short_threads\": %ld, "
         "\"without_slot\": %llu, \"slots_still_taken\": %d, \"warm_kb\": %ld, \"most_kb\": %ld}\n",
         words_after[0], (unsigned long long)waits_made + (unsigned long long)ended, (unsigned long long)taken,
         (unsigned long long)summed, (unsigned long long)status.dropped, ended,
         (unsigned long long)status.threads_without_slot, slots, warm_kb, most_kb);
}

/* calls KIND COUNT: 0 without the library, 1 a wait, 2 a named wait, 3 a copy below the threshold, 4 a wait that is kept,
   5 stopped; prints nanoseconds a call, of the fastest hundredth. */
static void calls(void) {
  struct caller *a = open_caller("libcaller-a.so");
  const long kind = words_after[0], count = words_after[1];
  if (kind != 0) {
    open_library();
    native.start(kind == 4 ? 0 : 1000000000u);
    if (kind == 2) native.own_slot()->named = 1;
    if (kind == 5) native.stop();
  }
  uint64_t best = UINT64_MAX;
  for (int part = 0; part < 100; part++) {
    const uint64_t begun = now_ns();
    for (long i = 0; i < count / 100; i++) kind == 3 ? a->copy(1, 1) : a->stream();
    const uint64_t ns = now_ns() - begun;
    if (ns < best) best = ns;
    if (kind == 4) take_all();
  }
  printf("%.1f\n", (double)best / (double)(count / 100));
}

/* joins KIND COUNT: 0 cudaStreamWaitEvent without the library, 1 while joins are measured and there was no collective,
   2 after one, for an event that has nothing to do with it, 3 for one that has: with a join's two events, of a runtime that
   does nothing; 4 cudaEventRecord after a collective; prints nanoseconds a call, of the fastest hundredth. */
static void joins(void) {
  const long kind = words_after[0], count = words_after[1];
  struct syncagent_join taken[64];
  training_of("libtraining.so");
  if (kind != 0) {
    open_library();
    native.start(0);
    native.measure_joins(1);
    if (kind >= 2) begin_reduce(COMPUTE, NCCL, events[0]);
  }
  train->record(events[1], kind == 3 ? NCCL : SIDE);
  uint64_t best = UINT64_MAX;
  for (int part = 0; part < 100; part++) {
    uint64_t ns = 0;
    for (long i = 0; i < count / 100; i++) {
      if (kind == 3) begin_reduce(COMPUTE, NCCL, events[1]);
      const uint64_t begun = kind == 3 || i == 0 ? now_ns() : 0;
      kind == 4 ? train->record(events[1], SIDE) : train->wait(COMPUTE, events[1]);
      if (kind == 3) ns += now_ns() - begun;
      else if (i == 0) ns -= begun;
      if (kind == 3) native.take_joins(taken, 64);
    }
    if (kind != 3) ns += now_ns();
    if (ns < best) best = ns;
  }
  printf("%.1f\n", (double)best / (double)(count / 100));
}

static const struct {
  const char *name;
  void (*run)(void);
} programs[] = {{"soak", soak}, {"calls", calls}, {"joins", joins}}, scenarios[] = {
#define SCENARIO(NAME) {#NAME, NAME}
    SCENARIO(calls_are_timed),
    SCENARIO(short_calls_are_added_up),
    SCENARIO(named_waits_go_into_their_sum_alone),
    SCENARIO(full_queues_are_told_from_pageable_copies),
    SCENARIO(errno_is_kept),
    SCENARIO(nested_calls_are_part_of_the_outermost),
    SCENARIO(each_runtime_has_wrappers_of_its_own),
    SCENARIO(objects_opened_later_are_found),
    SCENARIO(five_runtimes_are_one_too_many),
    SCENARIO(entries_bound_later_are_found),
    SCENARIO(read_only_entries_are_read_only_again),
    SCENARIO(pointers_in_data_are_patched),
    SCENARIO(objects_that_export_nothing_are_patched),
    SCENARIO(objects_that_are_being_loaded_are_left_alone),
    SCENARIO(entries_that_stay_read_only_are_counted),
    SCENARIO(entries_of_other_tools_are_left_alone),
    SCENARIO(copied_pointers_pass_through_after_stop),
    SCENARIO(closed_objects_are_not_restored),
    SCENARIO(slots_are_used_again),
    SCENARIO(slots_are_freed_without_a_cheap_key),
    SCENARIO(threads_without_a_slot_are_counted),
    SCENARIO(full_rings_count_what_they_drop),
    SCENARIO(cancelled_threads_leave_their_slot_closed),
    SCENARIO(signal_handlers_may_wait),
    SCENARIO(many_threads_and_restarts),
    SCENARIO(walks_beside_dlopen_and_dlclose),
    SCENARIO(open_waits_are_told_of_once),
    SCENARIO(lookers_are_sent_away_by_stop),
    SCENARIO(late_lookers_are_stood_in_for),
    SCENARIO(calls_that_follow_at_once_are_known),
    SCENARIO(waits_for_gradients_are_measured),
    SCENARIO(other_streams_are_not_collectives),
    SCENARIO(events_recorded_anew_lose_their_mark),
    SCENARIO(chains_of_streams_are_followed),
    SCENARIO(collectives_on_the_compute_stream_are_measured),
    SCENARIO(a_join_says_how_far_the_host_is_ahead),
    SCENARIO(another_compute_stream_can_be_named),
    SCENARIO(nothing_is_recorded_in_captures),
    SCENARIO(old_runtimes_are_left_alone),
    SCENARIO(joins_are_taken_when_they_are_over),
    SCENARIO(joins_without_events_are_counted),
    SCENARIO(failing_devices_end_it),
    SCENARIO(failing_captures_end_it),
    SCENARIO(failing_creations_end_it),
    SCENARIO(failing_records_end_it),
    SCENARIO(failing_queries_end_it),
    SCENARIO(failing_times_end_it),
    SCENARIO(errors_of_the_program_stay),
    SCENARIO(a_reset_of_the_device_ends_it),
    SCENARIO(hooks_come_and_go),
    SCENARIO(libraries_opened_later_have_hooks),
    SCENARIO(joins_that_a_stop_comes_into_are_left_out),
    SCENARIO(many_streams_are_too_many),
    SCENARIO(many_threads_train),
    SCENARIO(children_start_empty),
    SCENARIO(children_of_a_wait_leave_it_in_peace),
    SCENARIO(children_of_a_walk_can_load),
    SCENARIO(children_of_a_constructor_do_not_hang),
    SCENARIO(children_measure_anew),
    SCENARIO(children_of_a_join_leave_it_in_peace),
};

int main(int count, char **words) {
  if (count < 3) {
    for (size_t i = 0; i < sizeof scenarios / sizeof *scenarios; i++) puts(scenarios[i].name);
    return 0;
  }
  folder = words[1];
  for (size_t i = 0; i < sizeof scenarios / sizeof *scenarios; i++)
    if (strcmp(words[2], scenarios[i].name) == 0) {
      scenarios[i].run();
      return 0;
    }
  for (int i = 0; i < 3; i++) words_after[i] = i + 3 < count ? atol(words[i + 3]) : 0;
  for (size_t i = 0; i < sizeof programs / sizeof *programs; i++)
    if (strcmp(words[2], programs[i].name) == 0) {
      programs[i].run();
      return 0;
    }
  fprintf(stderr, "there is no scenario %s\n", words[2]);
  return 2;
}
