"""A C extension that waits for the GPU by itself, built against the CUDA runtime that torch has loaded.

Its calls go through its own table of entries, as those of every compiled extension do; ctypes alone would go round it.
With ``SLEEPING_RUNTIME=1``, for rehearsals without a GPU, it is built against a runtime whose calls sleep for 5 ms.
"""

from __future__ import annotations

import ctypes
import functools
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from tests.gpu.runtime import library

__all__ = ["load"]

_SOURCE = """
#include <stddef.h>
#include <stdint.h>
int cudaDeviceSynchronize(void);
int cudaStreamSynchronize(void *stream);
int cudaEventSynchronize(void *event);
int cudaMemcpy(void *to, const void *from, size_t bytes, int kind);
int cudaMemcpyAsync(void *to, const void *from, size_t bytes, int kind, void *stream);
int cudaMalloc(void **at, size_t bytes);
int cudaFree(void *at);
int cudaStreamQuery(void *stream);
int wait_device(void) { return cudaDeviceSynchronize(); }
int wait_stream(void *stream) { return cudaStreamSynchronize(stream); }
int wait_event(void *event) { return cudaEventSynchronize(event); }
int copy(void *to, const void *from, size_t bytes, int kind) { return cudaMemcpy(to, from, bytes, kind); }
int copy_async(void *to, const void *from, size_t bytes, int kind) { return cudaMemcpyAsync(to, from, bytes, kind, 0); }
int scratch(size_t bytes) { void *at; int result = cudaMalloc(&at, bytes); return result ? result : cudaFree(at); }
int query(void *stream) { int result = cudaStreamQuery(stream); return result == 600 ? 0 : result; }
int wait_twice(void) { int result = cudaStreamSynchronize(0); return result ? result : cudaDeviceSynchronize(); }
"""
_SLEEPING = """
#include <stddef.h>
#include <unistd.h>
static int rest(void) { usleep(5000); return 0; }
int cudaDeviceSynchronize(void) { return rest(); }
int cudaStreamSynchronize(void *stream) { (void)stream; return rest(); }
int cudaEventSynchronize(void *event) { (void)event; return rest(); }
int cudaMemcpy(void *to, const void *from, size_t bytes, int kind) {
    (void)to, (void)from, (void)bytes, (void)kind;
    return rest();
}
int cudaMemcpyAsync(void *to, const void *from, size_t bytes, int kind, void *stream) {
    (void)to, (void)from, (void)bytes, (void)kind, (void)stream;
    return rest();
}
int cudaMalloc(void **at, size_t bytes) { (void)bytes; *at = NULL; return 0; }
int cudaFree(void *at) { (void)at; return rest(); }
int cudaStreamQuery(void *stream) { (void)stream; return 0; }
"""


@functools.cache
def _build() -> str:
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if compiler is None:
        raise OSError("there is no C compiler")
    folder = Path(tempfile.mkdtemp())

    def compiled(name: str, text: str, *more: str) -> str:
        source = folder / f"{name}.c"
        source.write_text(text, encoding="utf-8")
        words = [compiler, "-O2", "-shared", "-fPIC", "-o", str(folder / f"{name}.so"), str(source), *more]
        subprocess.run(words, check=True)
        return words[5]

    # An agent knows a CUDA runtime by its file's name.
    runtime = compiled("libcudart_sleeping", _SLEEPING) if os.environ.get("SLEEPING_RUNTIME") else library()
    return compiled("waiting", _SOURCE, runtime, f"-Wl,-rpath,{Path(runtime).parent}")


@functools.cache
def load(*, hold_gil: bool) -> Any:
    """Return the extension; ``hold_gil`` keeps the interpreter's lock during its calls, as careless extensions do."""
    # torch has made its runtime's names known to all that is loaded later; the sleeping one has to come first.
    mode = os.RTLD_DEEPBIND if os.environ.get("SLEEPING_RUNTIME") else ctypes.DEFAULT_MODE
    loaded = (ctypes.PyDLL if hold_gil else ctypes.CDLL)(_build(), mode=mode | os.RTLD_NOW)
    for name in ("wait_stream", "wait_event", "query"):
        getattr(loaded, name).argtypes = (ctypes.c_void_p,)
    for name in ("copy", "copy_async"):
        getattr(loaded, name).argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    loaded.scratch.argtypes = (ctypes.c_size_t,)
    return loaded
