"""The CUDA runtime and NCCL as other libraries use them: no op of torch has a part in it."""

from __future__ import annotations

import atexit
import ctypes
import functools
import re
import tempfile
from pathlib import Path
from typing import Any

__all__ = ["Runtime", "block", "library", "pool", "raw", "single_group", "words"]


@functools.cache
def library() -> str:
    """Return the path of the libcudart that torch has loaded; raises ``OSError`` where there is none."""
    found = re.findall(r"\S*/libcudart[\w-]*\.so[\w.]*", Path("/proc/self/maps").read_text(encoding="utf-8"))
    if not found:
        raise OSError("no libcudart is loaded")
    return found[0]


class Runtime:
    """Calls functions of the CUDA runtime by name; numbers are passed as 64 bits, and a failure raises.

    ctypes looks functions up by dlsym, so no entry of any object's table is involved: agents that patch those cannot
    see these calls.  ``hold_gil`` makes them with the interpreter's lock held, as an extension may.
    """

    def __init__(self, *, hold_gil: bool = False) -> None:
        self._library = (ctypes.PyDLL if hold_gil else ctypes.CDLL)(library())

    def __getattr__(self, name: str) -> Any:
        function = getattr(self._library, name)

        def call(*args: Any) -> int:
            result = int(function(*(ctypes.c_void_p(arg) if isinstance(arg, int) else arg for arg in args)))
            if result:
                self._library.cudaGetLastError()
                raise RuntimeError(f"{name}: CUDA error {result}")
            return result

        setattr(self, name, call)
        return call

    def made(self, name: str, *args: Any) -> int:
        """Return what a function that makes something writes through its first argument."""
        made = ctypes.c_void_p()
        getattr(self, name)(ctypes.byref(made), *args)
        return made.value or 0


@functools.cache
def raw() -> Runtime:
    """Return the runtime, its functions already looked up by whoever asked before."""
    return Runtime()


def words(*values: int) -> Any:
    """Return a pointer to a struct of 64-bit words, such as ``cudaMemcpy3DParms``."""
    return ctypes.byref((ctypes.c_uint64 * len(values))(*values))


def block(source: Any, to: Any) -> Any:
    """Return ``cudaMemcpy3DParms`` of 4 MB from a host tensor to a device tensor."""
    shape = (4096, 4096, 64)
    return words(0, 0, 0, 0, source.data_ptr(), *shape, 0, 0, 0, 0, to.data_ptr(), *shape, 4096, 64, 16, 1)


def pool() -> int:
    """Return the device's own memory pool."""
    return raw().made("cudaDeviceGetDefaultMemPool", 0)


@functools.cache
def single_group(backend: str = "nccl") -> Any:
    """Make the process group of a job with one rank, once, and return ``torch.distributed``; gloo without a GPU."""
    import torch
    from torch import distributed

    if not torch.cuda.is_available():
        backend = "gloo"
    folder = tempfile.mkdtemp()
    store = distributed.FileStore(str(Path(folder, "store")), 1)
    device = torch.device("cuda", 0) if "nccl" in backend else None
    distributed.init_process_group(backend, store=store, rank=0, world_size=1, device_id=device)
    atexit.register(distributed.destroy_process_group)
    return distributed
