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

# What is hooked for joins, and what joins ask of the runtime.
_JOINS = """
#define _GNU_SOURCE
#include <nccl.h>
#include "joins.c"
#define CALLED(NAME, PARAMETERS, ARGUMENTS) \\
  int called_##NAME PARAMETERS; \\
  int called_##NAME PARAMETERS { return (int)NAME ARGUMENTS; }
#define FUNCTION(NAME, SORT, PARAMETERS, ARGUMENTS) CALLED(NAME, PARAMETERS, ARGUMENTS)
#include "event_functions.h"
%s
CALLED(cudaGetDevice, (int *device), (device))
CALLED(cudaStreamIsCapturing, (void *stream, int *status), (stream, (enum cudaStreamCaptureStatus *)status))
CALLED(cudaThreadExchangeStreamCaptureMode, (int *mode), ((enum cudaStreamCaptureMode *)mode))
CALLED(cudaEventCreateWithFlags, (void **event, unsigned flags), ((cudaEvent_t *)event, flags))
CALLED(cudaEventQuery, (void *event), (event))
CALLED(cudaEventElapsedTime, (float *ms, void *from, void *to), (ms, from, to))
_Static_assert(NOT_READY == cudaErrorNotReady && CAPTURE_ELSEWHERE == cudaErrorStreamCaptureImplicit, "");
_Static_assert(NOT_CAPTURING == cudaStreamCaptureStatusNone && RELAXED == cudaStreamCaptureModeRelaxed, "");
_Static_assert(sizeof(enum cudaStreamCaptureStatus) == sizeof(int) && cudaEventDefault == 0, "");
"""
_NEWER = ("ncclAlltoAll", "ncclGather", "ncclScatter")
"""Functions that NCCL has since 2.28."""


def installed(package, pattern):
    found = importlib.util.find_spec(package)
    for folder in found.submodule_search_locations if found is not None else ():
        for path in Path(folder).glob(pattern):
            return path
    pytest.skip(f"{package} has no {pattern} here")


def names(file="functions.h", kinds=("WAITS(", "MAY_WAIT(", "TAKES_TIME(", "COPIES(", "QUEUES(")):
    text = (build.SOURCES / file).read_text()
    return [line.split("(")[1].split(",")[0] for line in text.splitlines() if line.startswith(kinds)]


def hooked():
    return names("event_functions.h", ("RECORDS(", "WAITS_FOR("))


def of_nccl():
    return names("nccl_functions.h", ("GROUP(", "COLLECTIVE("))


def check(source, folder, *headers):
    """Compile a source that calls functions of the headers; a warning is an error."""
    try:
        compiler = build.find_compiler()
    except build.NotBuiltError as error:
        pytest.skip(str(error))
    (folder / "called.c").write_text(source)
    words = [
        *compiler, "-std=c11", "-fsyntax-only", *build.WARNINGS, "-Wconversion", "-Wsign-conversion",
        "-Wno-incompatible-pointer-types", "-Wno-deprecated-declarations", f"-I{build.SOURCES}",
        *(word for header in headers for word in ("-isystem", str(header))), str(folder / "called.c"),
    ]  # fmt: skip
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_parameters_are_those_of_the_headers(tmp_path):
    header = installed("triton", "backends/nvidia/include/cuda_runtime_api.h")
    # The per-thread forms have the parameters of the others.
    forms = [name for name in names() if name.endswith(("_ptsz", "_ptds"))]
    source = _SOURCE % "\n".join(f"extern __typeof__({name[:-5]}) {name};" for name in forms)
    check(source, tmp_path, header.parent)


def test_parameters_of_streams_and_collectives_are_those_of_the_headers(tmp_path):
    header = installed("triton", "backends/nvidia/include/cuda_runtime_api.h")
    nccl = installed("nvidia", "nccl/include/nccl.h")
    (tmp_path / "cuda_runtime.h").write_text("#include <cuda_runtime_api.h>\n")
    for number_types in ("cuda_fp16.h", "cuda_bf16.h", "cuda_fp8.h"):  # C++
        (tmp_path / number_types).touch()
    known = nccl.read_text()
    newer = "ncclResult_t ncclGather(const void *, void *, size_t, ncclDataType_t, int, ncclComm_t, cudaStream_t);"
    newer += newer.replace("Gather", "Scatter") + newer.replace("Gather", "AlltoAll").replace(" int,", "")
    declared = "" if f"{_NEWER[0]}(" in known else newer
    check(_JOINS % f'{declared}\n#include "nccl_functions.h"', tmp_path, tmp_path, header.parent, nccl.parent)


def test_every_function_is_in_the_runtime():
    exported = installed("nvidia", "*/lib/libcudart.so.*").read_bytes()
    absent = {name for name in [*names(), *hooked()] if b"\0" + name.encode() + b"\0" not in exported}
    assert absent <= {"cudaThreadSynchronize"}  # before CUDA 13


def test_every_collective_is_in_nccl():
    exported = installed("nvidia", "nccl/lib/libnccl.so.*").read_bytes()
    assert {name for name in of_nccl() if b"\0" + name.encode() + b"\0" not in exported} <= set(_NEWER)
