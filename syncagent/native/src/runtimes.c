#define _GNU_SOURCE
#include "runtimes.h"

#include <dlfcn.h>
#include <string.h>
#include <unistd.h>

#define FUNCTION(NAME, ...) #NAME,
const char *const function_names[FUNCTIONS] = {
#include "functions.h"
};
#undef FUNCTION

_Atomic(uintptr_t) originals[MOST_RUNTIMES][FUNCTIONS];
struct questions questions[MOST_RUNTIMES];

static uintptr_t bases[MOST_RUNTIMES];
static _Atomic(int) count;

int runtime_count(void) { return atomic_load_explicit(&count, memory_order_acquire); }

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

bool is_runtime(const struct dl_phdr_info *info) {
  if (info->dlpi_name == NULL) return false;
  const char *slash = strrchr(info->dlpi_name, '/');
  return strncmp(slash != NULL ? slash + 1 : info->dlpi_name, "libcudart", 9) == 0;
}

void note_runtime(const struct dl_phdr_info *info, struct found_runtimes *found) {
  const int known = runtime_count();
  if (known + found->count == MOST_RUNTIMES || strlen(info->dlpi_name) >= sizeof found->each[0].name) return;
  for (int i = 0; i < known; i++)
    if (bases[i] == info->dlpi_addr) return;
  extent_of(info, &found->each[found->count].extent);
  strcpy(found->each[found->count].name, info->dlpi_name);
  found->count++;
}

static uintptr_t find(void *library, const struct extent *extent, const char *name) {
  const uintptr_t address = (uintptr_t)dlsym(library, name);
  return extent->low <= address && address < extent->high ? address : 0; /* dlsym also looks into what it depends on */
}

void open_runtimes(const struct found_runtimes *found) {
  for (int i = 0; i < found->count; i++) {
    const struct extent *extent = &found->each[i].extent;
    /* Waits until a dlopen under way has ended; the reference is never given back, so that originals stay valid. */
    void *library = dlopen(found->each[i].name, RTLD_LAZY | RTLD_NOLOAD);
    if (library == NULL) continue;
    const struct link_map *map = NULL;
    if (dlinfo(library, RTLD_DI_LINKMAP, &map) != 0 || map->l_addr != extent->base) {
      dlclose(library);
      continue;
    }
    const int number = runtime_count();
    for (int f = 0; f < FUNCTIONS; f++)
      atomic_store_explicit(&originals[number][f], find(library, extent, function_names[f]), memory_order_relaxed);
    questions[number] = (struct questions){
        .pointer_attributes = (int (*)(void *, const void *))find(library, extent, "cudaPointerGetAttributes"),
        .peek_at_last_error = (int (*)(void))find(library, extent, "cudaPeekAtLastError"),
        .get_last_error = (int (*)(void))find(library, extent, "cudaGetLastError"),
    };
    bases[number] = extent->base;
    atomic_store_explicit(&count, number + 1, memory_order_release);
  }
}
