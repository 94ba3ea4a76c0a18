"""The list of functions against CUDA's own headers and library, where torch has brought them."""

from __future__ import annotations

import importlib.util
import subprocess
from pathlib import Path

import pytest

from syncagent.native import build

# Each function is called with our parameters: a wrong number, an integer for a pointer, a narrower integer are errors.
_SOURCE = """
#define _GNU_SOURCE
#include <cuda_runtime_api.h>
#if CUDART_VERSION >= 13000
cudaError_t cudaThreadSynchronize(void);
#endif
#include "wrappers.c"
#undef FUNCTION
#define FUNCTION(NAME, SORT, PARAMETERS, ARGUMENTS, BYTES, DIRECTION, TO, FROM) \\
  int called_##NAME PARAMETERS; \\
  int called_##NAME PARAMETERS { return (int)NAME ARGUMENTS; }
%s
#include "functions.h"
#define SAME(OURS, THEIRS) \\
  _Static_assert(offsetof(struct copy_3d, OURS) == offsetof(struct cudaMemcpy3DParms, THEIRS), #OURS)
SAME(from.array, srcArray);
SAME(from.x, srcPos);
SAME(from.pointer, srcPtr);
SAME(to.array, dstArray);
SAME(to.x, dstPos);
SAME(to.pointer, dstPtr);
SAME(width, extent.width);
SAME(height, extent.height);
SAME(depth, extent.depth);
SAME(kind, kind);
_Static_assert(sizeof(struct cudaPointerAttributes) <= 256 && offsetof(struct cudaPointerAttributes, type) == 0, "");
_Static_assert(DEVICE_TO_DEVICE == cudaMemcpyDeviceToDevice && cudaMemoryTypeUnregistered == 0, "");
"""


def installed(package, pattern):
    found = importlib.util.find_spec(package)
    for folder in found.submodule_search_locations if found is not None else ():
        for path in Path(folder).glob(pattern):
            return path
    pytest.skip(f"{package} has no {pattern} here")


def names():
    text = (build.SOURCES / "functions.h").read_text()
    kinds = ("WAITS(", "MAY_WAIT(", "TAKES_TIME(", "COPIES(", "QUEUES(")
    return [line.split("(")[1].split(",")[0] for line in text.splitlines() if line.startswith(kinds)]


def test_parameters_are_those_of_the_headers(tmp_path):
    header = installed("triton", "backends/nvidia/include/cuda_runtime_api.h")
    try:
        compiler = build.find_compiler()
    except build.NotBuiltError as error:
        pytest.skip(str(error))
    # The per-thread forms have the parameters of the others.
    forms = [name for name in names() if name.endswith(("_ptsz", "_ptds"))]
    source = tmp_path / "called.c"
    source.write_text(_SOURCE % "\n".join(f"extern __typeof__({name[:-5]}) {name};" for name in forms))
    words = [
        *compiler, "-std=c11", "-fsyntax-only", *build.WARNINGS, "-Wconversion", "-Wsign-conversion",
        "-Wno-incompatible-pointer-types", "-Wno-deprecated-declarations", f"-I{build.SOURCES}",
        "-isystem", str(header.parent), str(source),
    ]  # fmt: skip
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_every_function_is_in_the_runtime():
    exported = installed("nvidia", "*/lib/libcudart.so.*").read_bytes()
    absent = {name for name in names() if b"\0" + name.encode() + b"\0" not in exported}
    assert absent <= {"cudaThreadSynchronize"}  # before CUDA 13
