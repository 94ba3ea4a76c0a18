#define _GNU_SOURCE
#include "runtimes.h"

#include <dlfcn.h>
#include <string.h>
#include <unistd.h>

#define FUNCTION(NAME, ...) #NAME,
const char *const function_names[ALL_FUNCTIONS] = {
#include "functions.h"
#include "event_functions.h"
#include "nccl_functions.h"
};
#undef FUNCTION

_Atomic(uintptr_t) originals[LIBRARIES][ALL_FUNCTIONS];
struct questions questions[MOST_RUNTIMES];

static uintptr_t bases[LIBRARIES];
static _Atomic(int) runtimes_known, nccls_known;

int runtime_count(void) { return atomic_load_explicit(&runtimes_known, memory_order_acquire); }

/* Of a kind: the number of its first library, how many there can be, and how many are known. */
static int first_of(enum kind kind) { return kind == NCCL ? MOST_RUNTIMES : 0; }
static int most_of(enum kind kind) { return kind == NCCL ? MOST_NCCLS : MOST_RUNTIMES; }
static _Atomic(int) *known_of(enum kind kind) { return kind == NCCL ? &nccls_known : &runtimes_known; }

void extent_of(const struct dl_phdr_info *info, struct extent *into) {
  const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
  *into = (struct extent){.base = info->dlpi_addr, .low = UINTPTR_MAX};
  for (int i = 0; i < info->dlpi_phnum; i++) {
    const ElfW(Phdr) *header = &info->dlpi_phdr[i];
    const uintptr_t low = info->dlpi_addr + header->p_vaddr, high = low + header->p_memsz;
    if (header->p_type == PT_LOAD) {
      if (low < into->low) into->low = low;
      if (high > into->high) into->high = high;
    } else if (header->p_type == PT_DYNAMIC) {
      into->dynamic = (const ElfW(Dyn) *)low;
    } else if (header->p_type == PT_GNU_RELRO) {
      into->relro_low = low & ~(page - 1);
      into->relro_high = high & ~(page - 1);
    }
  }
}

enum kind kind_of_library(const struct dl_phdr_info *info) {
  if (info->dlpi_name == NULL) return OTHER_LIBRARY;
  const char *slash = strrchr(info->dlpi_name, '/');
  const char *name = slash != NULL ? slash + 1 : info->dlpi_name;
  if (strncmp(name, "libcudart", 9) == 0) return CUDA_RUNTIME;
  return strncmp(name, "libnccl.so", 10) == 0 ? NCCL : OTHER_LIBRARY; /* libnccl-net.so and the like are plugins of it */
}

void note_library(const struct dl_phdr_info *info, enum kind kind, struct found_libraries *found) {
  const int first = first_of(kind), known = atomic_load_explicit(known_of(kind), memory_order_relaxed);
  int new = 0;
  for (int i = 0; i < found->count; i++) new += found->each[i].kind == kind;
  if (known + new == most_of(kind) || strlen(info->dlpi_name) >= sizeof found->each[0].name) return;
  for (int i = first; i < first + known; i++)
    if (bases[i] == info->dlpi_addr) return;
  extent_of(info, &found->each[found->count].extent);
  found->each[found->count].kind = kind;
  strcpy(found->each[found->count].name, info->dlpi_name);
  found->count++;
}

static uintptr_t find(void *library, const struct extent *extent, const char *name) {
  const uintptr_t address = (uintptr_t)dlsym(library, name);
  return extent->low <= address && address < extent->high ? address : 0; /* dlsym also looks into what it depends on */
}

static struct questions questions_for(void *library, const struct extent *extent) {
  struct questions asked = {
      .pointer_attributes = (int (*)(void *, const void *))find(library, extent, "cudaPointerGetAttributes"),
      .peek_at_last_error = (int (*)(void))find(library, extent, "cudaPeekAtLastError"),
      .get_last_error = (int (*)(void))find(library, extent, "cudaGetLastError"),
      .get_device = (int (*)(int *))find(library, extent, "cudaGetDevice"),
      .is_capturing = (int (*)(void *, int *))find(library, extent, "cudaStreamIsCapturing"),
      .exchange_capture_mode = (int (*)(int *))find(library, extent, "cudaThreadExchangeStreamCaptureMode"),
      .create_event = (int (*)(void **, unsigned))find(library, extent, "cudaEventCreateWithFlags"),
      .record_event = (int (*)(void *, void *))find(library, extent, "cudaEventRecord"),
      .query_event = (int (*)(void *))find(library, extent, "cudaEventQuery"),
      .elapsed_ms = (int (*)(float *, void *, void *))find(library, extent, "cudaEventElapsedTime"),
  };
  asked.can_measure = asked.peek_at_last_error && asked.get_last_error && asked.get_device && asked.is_capturing &&
                      asked.exchange_capture_mode && asked.create_event && asked.record_event && asked.query_event &&
                      asked.elapsed_ms;
  return asked;
}

void open_libraries(const struct found_libraries *found) {
  for (int i = 0; i < found->count; i++) {
    const struct extent *extent = &found->each[i].extent;
    const enum kind kind = found->each[i].kind;
    /* Waits until a dlopen under way has ended; the reference is never given back, so that originals stay valid. */
    void *library = dlopen(found->each[i].name, RTLD_LAZY | RTLD_NOLOAD);
    if (library == NULL) continue;
    const struct link_map *map = NULL;
    if (dlinfo(library, RTLD_DI_LINKMAP, &map) != 0 || map->l_addr != extent->base) {
      dlclose(library);
      continue;
    }
    const int known = atomic_load_explicit(known_of(kind), memory_order_relaxed), number = first_of(kind) + known;
    const int begin = kind == NCCL ? NUMBER_ncclGroupStart : 0, end = kind == NCCL ? ALL_FUNCTIONS : NUMBER_ncclGroupStart;
    for (int f = begin; f < end; f++)
      atomic_store_explicit(&originals[number][f], find(library, extent, function_names[f]), memory_order_relaxed);
    if (kind == CUDA_RUNTIME) questions[number] = questions_for(library, extent);
    bases[number] = extent->base;
    atomic_store_explicit(known_of(kind), known + 1, memory_order_release);
  }
}
