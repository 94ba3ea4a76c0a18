#define _GNU_SOURCE
#include "patch.h"

#include <elf.h>
#include <errno.h>
#include <linux/futex.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "hooks.h"
#include "runtimes.h"
#include "slots.h"
#include "wrappers.h"

#if !defined(__linux__) || !defined(__GLIBC__)
#error "this needs Linux and glibc"
#elif defined(__x86_64__) && defined(__LP64__)
#define JUMP_SLOT R_X86_64_JUMP_SLOT
#define GLOB_DAT R_X86_64_GLOB_DAT
#define ABSOLUTE R_X86_64_64
#elif defined(__aarch64__) && defined(__LP64__)
#define JUMP_SLOT R_AARCH64_JUMP_SLOT
#define GLOB_DAT R_AARCH64_GLOB_DAT
#define ABSOLUTE R_AARCH64_ABS64
#else
#error "the relocation types of this processor are not known here"
#endif

/* An object of which the loader has not yet made the RELRO pages read-only is still being relocated, and would fault if we
   made them so. Only an object that stays like this is patched as it is: somebody has unprotected it for good. */
#define STAYS_WRITABLE_NS 10000000000u

/* What a walk finds, for later walks that need not read all objects anew. */
#define MOST_OBJECTS 1024
#define MOST_ENTRIES 8192
static struct object {
  struct extent extent;
  uint64_t writable_since_ns; /* its RELRO pages, as far as we have seen; 0: they are not */
  bool has_ours;
} objects[MOST_OBJECTS];
static struct entry {
  _Atomic(uintptr_t) * at;
  int object, function;
} entries[MOST_ENTRIES];
static int object_count, entry_count;
static bool has_room;                    /* all are in the tables above */
static uint64_t walked_adds, walked_subs; /* the loader's counters when they were filled */

static struct {
  uintptr_t base;
  uint64_t since_ns;
} writable[64]; /* objects that were being loaded, beyond the life of the tables above */
static int writable_count;

struct walk {
  bool restoring, quick, first, done;
  int patched;
  uintptr_t page;
  uint64_t now_ns, adds, subs;
  struct seen *seen;
  struct found_libraries found;
};

enum outcome { WRITTEN, LATER, REFUSED };

/* Can that page be written to? Asked of the kernel by adding no bit to the word there, in one atomic step. */
static bool is_writable(const _Atomic(uintptr_t) *at, bool otherwise) {
  static uint32_t nobody_waits_here;
  const uint32_t add_no_bit = (uint32_t)FUTEX_OP_OR << 28 | (uint32_t)FUTEX_OP_CMP_EQ << 24;
  if (syscall(SYS_futex, &nobody_waits_here, FUTEX_WAKE_OP | FUTEX_PRIVATE_FLAG, 0, NULL, at, add_no_bit) >= 0) return true;
  return errno == EFAULT ? false : otherwise;
}

static bool is_being_loaded(struct object *object, const struct walk *walk) {
  int i = 0;
  while (i < writable_count && writable[i].base != object->extent.base) i++;
  if (i == writable_count) {
    if (i == (int)(sizeof writable / sizeof *writable)) return true;
    writable[writable_count].base = object->extent.base;
    writable[writable_count++].since_ns = walk->now_ns;
  }
  return walk->now_ns - writable[i].since_ns < STAYS_WRITABLE_NS;
}

static enum outcome write_entry(struct object *object, _Atomic(uintptr_t) *at, uintptr_t from, uintptr_t to,
                                const struct walk *walk) {
  const uintptr_t address = (uintptr_t)at;
  const bool relro = object->extent.relro_low <= address && address < object->extent.relro_high;
  void *page = (void *)(address & ~(walk->page - 1));
  const bool was_writable = is_writable(at, !relro);
  if (was_writable && relro && !walk->restoring && is_being_loaded(object, walk)) return LATER;
  if (!was_writable && mprotect(page, walk->page, PROT_READ | PROT_WRITE) != 0) return REFUSED;
  const bool written = atomic_compare_exchange_strong(at, &from, to); /* else somebody else has just written there */
  if (!was_writable) mprotect(page, walk->page, PROT_READ); /* it can only fail by leaving a page writable */
  return written ? WRITTEN : LATER;
}

static uintptr_t wrapper_of(int library, int function) {
  if (function >= FUNCTIONS) return hooks[library][function - FUNCTIONS];
  return library < MOST_RUNTIMES ? wrappers[library][function] : 0;
}

static void see_entry(struct walk *walk, struct object *object, _Atomic(uintptr_t) *at, int function) {
  const uintptr_t value = atomic_load(at);
  const bool is_hook = function >= FUNCTIONS;
  const bool restoring = walk->restoring || (is_hook && !atomic_load_explicit(&hooks_wanted, memory_order_relaxed));
  struct seen *seen = walk->seen;
  for (int l = 0; l < LIBRARIES; l++) {
    const uintptr_t original = atomic_load_explicit(&originals[l][function], memory_order_relaxed);
    const uintptr_t wrapper = wrapper_of(l, function);
    if (original == 0 || (value != original && value != wrapper)) continue;
    const uintptr_t wanted = restoring ? original : wrapper;
    switch (value == wanted ? WRITTEN : write_entry(object, at, value, wanted, walk)) {
      case WRITTEN:
        if (restoring) return;
        *(is_hook ? &seen->hooks : &seen->entries) += 1;
        if (!object->has_ours) seen->objects++;
        object->has_ours = true;
        if (value != wanted) walk->patched++;
        return;
      case LATER:
        seen->unresolved++;
        return;
      case REFUSED:
        *(is_hook ? &seen->hooks_missed : &seen->read_only) += 1;
        if (restoring) *(is_hook ? &seen->hooks : &seen->entries) += 1;
        return;
    }
  }
  if (restoring && is_hook) return; /* none of our business */
  /* Not bound yet: the stub in the object's own PLT, or what stands there before the object is relocated. */
  const struct extent *extent = &object->extent;
  if ((extent->low <= value && value < extent->high) || value < extent->high - extent->low)
    seen->unresolved++;
  else
    *(is_hook ? &seen->hooks_missed : &seen->foreign) += 1;
}

static void see_known_entries(struct walk *walk) {
  for (int i = 0; i < object_count; i++) objects[i].has_ours = false;
  for (int i = 0; i < entry_count; i++)
    see_entry(walk, &objects[entries[i].object], entries[i].at, entries[i].function);
}

static int function_named(const char *name) {
  if (strncmp(name, "cuda", 4) != 0 && strncmp(name, "nccl", 4) != 0) return -1;
  for (int f = 0; f < ALL_FUNCTIONS; f++)
    if (strcmp(name, function_names[f]) == 0) return f;
  return -1;
}

/* The parts of an object's dynamic section that are used here. */
struct dynamic {
  const ElfW(Sym) * symbols;
  const char *strings;
  size_t strings_size;
  const uint32_t *hash, *gnu_hash;
  struct {
    const ElfW(Rela) * first;
    size_t count;
  } relocations[2]; /* of the PLT, and all others */
};

/* The loader has made addresses of these offsets, but not in every object (the vDSO's). */
static const void *address_in(const struct extent *extent, ElfW(Addr) value) {
  if (value < extent->base) value += extent->base;
  return extent->low <= value && value < extent->high ? (const void *)value : NULL;
}

static bool read_dynamic(const struct extent *extent, struct dynamic *into) {
  size_t relative = 0;
  *into = (struct dynamic){0};
  for (const ElfW(Dyn) *d = extent->dynamic; d->d_tag != DT_NULL; d++) {
    switch (d->d_tag) {
      case DT_SYMTAB: into->symbols = address_in(extent, d->d_un.d_ptr); break;
      case DT_STRTAB: into->strings = address_in(extent, d->d_un.d_ptr); break;
      case DT_STRSZ: into->strings_size = d->d_un.d_val; break;
      case DT_HASH: into->hash = address_in(extent, d->d_un.d_ptr); break;
      case DT_GNU_HASH: into->gnu_hash = address_in(extent, d->d_un.d_ptr); break;
      case DT_JMPREL: into->relocations[0].first = address_in(extent, d->d_un.d_ptr); break;
      case DT_PLTRELSZ: into->relocations[0].count = d->d_un.d_val / sizeof(ElfW(Rela)); break;
      case DT_RELA: into->relocations[1].first = address_in(extent, d->d_un.d_ptr); break;
      case DT_RELASZ: into->relocations[1].count = d->d_un.d_val / sizeof(ElfW(Rela)); break;
      case DT_RELACOUNT: relative = d->d_un.d_val; break;
      default: break;
    }
  }
  for (int k = 0; k < 2; k++)
    if (into->relocations[k].first == NULL) into->relocations[k].count = 0;
  if (relative <= into->relocations[1].count) { /* they come first and name no symbol; a large library has a million */
    into->relocations[1].first += relative;
    into->relocations[1].count -= relative;
  }
  return into->symbols != NULL && into->strings != NULL;
}

/* Symbols that an object imports stand before those that its hash table has. The table of an object that exports nothing
   does not say where they end; what is relocated does. */
static uint32_t imported_end(const struct dynamic *dynamic) {
  const uint32_t *table = dynamic->gnu_hash; /* buckets, first symbol, 64-bit words of the filter, a shift; then those */
  if (table != NULL) {
    const uint32_t *buckets = table + 4 + 2 * (size_t)table[2];
    if (table[0] > 1 || buckets[0] != 0) return table[1];
  } else if (dynamic->hash != NULL) {
    return dynamic->hash[1];
  }
  uint32_t end = 0;
  for (int k = 0; k < 2; k++)
    for (size_t i = 0; i < dynamic->relocations[k].count; i++) {
      const uint32_t symbol = ELF64_R_SYM(dynamic->relocations[k].first[i].r_info);
      if (symbol >= end) end = symbol + 1;
    }
  return end;
}

struct import {
  uint32_t symbol;
  int function;
};

static int imports_of(const struct dynamic *dynamic, int functions, struct import *into, int most) {
  const uint32_t end = imported_end(dynamic);
  int count = 0;
  for (uint32_t i = 1; i < end && count < most; i++) {
    const ElfW(Sym) *symbol = &dynamic->symbols[i];
    if (symbol->st_shndx != SHN_UNDEF || symbol->st_name >= dynamic->strings_size) continue;
    const int function = function_named(dynamic->strings + symbol->st_name);
    if (function >= 0 && function < functions) into[count++] = (struct import){.symbol = i, .function = function};
  }
  return count;
}

static void see_object(struct walk *walk, const struct extent *extent, int functions) {
  struct dynamic dynamic;
  struct import imports[2 * ALL_FUNCTIONS]; /* a name may stand there twice, with two versions */
  if (extent->dynamic == NULL || !read_dynamic(extent, &dynamic)) return;
  const int import_count = imports_of(&dynamic, functions, imports, 2 * ALL_FUNCTIONS);
  if (import_count == 0) return; /* nearly all objects */
  struct object overflow, *object = &overflow;
  if (object_count < MOST_OBJECTS) object = &objects[object_count++];
  else has_room = false;
  *object = (struct object){.extent = *extent};
  for (int k = 0; k < 2; k++) {
    for (size_t i = 0; i < dynamic.relocations[k].count; i++) {
      const ElfW(Rela) *relocation = &dynamic.relocations[k].first[i];
      const uint32_t type = ELF64_R_TYPE(relocation->r_info), symbol = ELF64_R_SYM(relocation->r_info);
      if (symbol < imports[0].symbol || symbol > imports[import_count - 1].symbol) continue;
      if ((type != JUMP_SLOT && type != GLOB_DAT && type != ABSOLUTE) || (type == ABSOLUTE && relocation->r_addend != 0))
        continue;
      const uintptr_t at = extent->base + relocation->r_offset;
      if (at < extent->low || at + sizeof at > extent->high || at % sizeof at != 0) continue;
      for (int n = 0; n < import_count; n++) {
        if (imports[n].symbol != symbol) continue;
        see_entry(walk, object, (_Atomic(uintptr_t) *)at, imports[n].function);
        if (entry_count == MOST_ENTRIES || object == &overflow)
          has_room = false;
        else
          entries[entry_count++] = (struct entry){(_Atomic(uintptr_t) *)at, (int)(object - objects), imports[n].function};
        break;
      }
    }
  }
}

/* The loader's lock is held in these two: no dlsym, no memory, no other lock. */
static int look_for_changes(struct dl_phdr_info *info, size_t size, void *data) {
  struct walk *walk = data;
  if (walk->first) {
    walk->first = false;
    if (size < offsetof(struct dl_phdr_info, dlpi_subs) + sizeof info->dlpi_subs) {
      walk->quick = has_room = false; /* no counters */
    } else {
      walk->adds = info->dlpi_adds;
      walk->subs = info->dlpi_subs;
    }
    /* Nothing has been unloaded, so all that we know is mapped, and stays so while the lock is held. */
    if (walk->quick && has_room && walk->adds == walked_adds && walk->subs == walked_subs) {
      see_known_entries(walk);
      walk->done = true;
      return 1;
    }
  }
  const enum kind kind = kind_of_library(info);
  if (kind != OTHER_LIBRARY) note_library(info, kind, &walk->found);
  return 0;
}

static int look_at_object(struct dl_phdr_info *info, size_t size, void *data) {
  struct extent extent;
  (void)size;
  const enum kind kind = kind_of_library(info);
  if (kind == CUDA_RUNTIME) return 0;
  extent_of(info, &extent);
  const uintptr_t us = (uintptr_t)&objects;
  if (us >= extent.low && us < extent.high) return 0;
  see_object(data, &extent, kind == NCCL ? FUNCTIONS : ALL_FUNCTIONS); /* NCCL's own streams and events are part of a call */
  return 0;
}

static int walk_objects(bool restoring, bool quick, struct seen *seen) {
  static struct walk walk; /* paths of libraries are long, and stacks may be short */
  *seen = (struct seen){0};
  walk = (struct walk){
      .restoring = restoring, .quick = quick, .first = true, .page = (uintptr_t)sysconf(_SC_PAGESIZE), .now_ns = now_ns(),
      .seen = seen};
  dl_iterate_phdr(look_for_changes, &walk);
  if (walk.done) return walk.patched;
  open_libraries(&walk.found);
  if (walk.subs != walked_subs) writable_count = 0; /* an address may be another object's now */
  object_count = entry_count = 0;
  has_room = true;
  dl_iterate_phdr(look_at_object, &walk);
  /* Those from before the walk: what has been loaded during it is looked for by the next one. */
  walked_adds = walk.adds;
  walked_subs = walk.subs;
  return walk.patched;
}

int patch_entries(bool force, struct seen *seen) { return walk_objects(false, !force, seen); }
void restore_entries(struct seen *seen) { walk_objects(true, false, seen); }
