"""Random numbers: a seed and an offset, which the host keeps and advances, as CUDA's generator does.

Each op gets a generator of its own made from them, so the numbers do not depend on when the worker runs, and the CPU's
generator is left alone.  They are not the numbers that CUDA would draw.
"""

from __future__ import annotations

import functools
import itertools
import struct
import weakref
from typing import Any

import torch

from syncagent.simulate import devices
from syncagent.simulate.failures import all_for_program

RealGenerator: Any = torch.Generator
DEFAULT_SEED = 67280421310721  # torch's own default_rng_seed_val
_MIX_SEED, _MIX_OFFSET = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9
_tokens = itertools.count(0x51C_A6E27_0000_0000)


_by_token: weakref.WeakValueDictionary[int, CudaGenerator] = weakref.WeakValueDictionary()


@functools.cache
def default_generator(index: int) -> CudaGenerator:
    """The device's own generator."""
    return CudaGenerator(index)


def draw(index: int, generator: Any) -> Any:
    """A CPU generator for one op on a device, from the given generator or the device's own."""
    if generator is None:
        return default_generator(index).for_one_op()
    # C++ hands over another Python object than the program made: the seed of torch's own generator identifies it.
    known = generator if type(generator) is CudaGenerator else _by_token.get(generator.initial_seed())
    if known is None:
        raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")
    return known.for_one_op()


@all_for_program
class _ByDevice(type):
    """``torch.Generator(device)`` makes torch's own generator, or a simulated one for CUDA."""

    def __call__(cls, device: Any = "cpu") -> Any:
        device = torch.device(device)
        if device.type != "cuda":
            return RealGenerator(device)
        return CudaGenerator(devices.index_of(device))

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, RealGenerator)

    def __subclasscheck__(cls, subclass: type) -> bool:
        return issubclass(subclass, RealGenerator)


class Generator(metaclass=_ByDevice):
    """Takes the place of ``torch.Generator``."""


@all_for_program
class CudaGenerator(RealGenerator):  # type: ignore[misc]  # RealGenerator is Any
    """A generator for a simulated device: a seed, and an offset that counts what has been drawn."""

    def __new__(cls, *_: Any, **__: Any) -> Any:
        return super().__new__(cls)

    def __init__(self, index: int, seed: int = DEFAULT_SEED, offset: int = 0) -> None:
        self._index, self._seed, self._offset = index, seed, offset
        self._has_seeded_cudnn = False
        token = next(_tokens)
        super().manual_seed(token)
        _by_token[token] = self

    @property
    def device(self) -> torch.device:
        return devices.shown[self._index]

    def for_one_op(self) -> Any:
        """A fresh CPU generator for one op."""
        self._offset = offset = self._offset + 4  # in one go: threads and signals' handlers draw as well
        mixed = (self._seed * _MIX_SEED + offset * _MIX_OFFSET) & 0x7FFF_FFFF_FFFF_FFFF
        return RealGenerator().manual_seed(mixed)

    def seeds_cudnn(self) -> bool:
        """Whether cuDNN is to seed the dropout of its recurrent layers: once after each change of this generator."""
        is_due, self._has_seeded_cudnn = not self._has_seeded_cudnn, True
        return is_due

    def manual_seed(self, seed: int) -> CudaGenerator:
        self._seed, self._offset = seed & (2**64 - 1), 0
        self._has_seeded_cudnn = False
        return self

    def seed(self) -> int:
        return self.manual_seed(RealGenerator().seed())._seed

    def initial_seed(self) -> int:
        return self._seed

    def get_state(self) -> torch.Tensor:
        """The sixteen bytes of CUDA's generator state."""
        return torch.frombuffer(bytearray(struct.pack("<QQ", self._seed, self._offset)), dtype=torch.uint8)

    def set_state(self, state: torch.Tensor) -> CudaGenerator:
        if state.dtype != torch.uint8 or state.numel() != 16:
            raise RuntimeError("RNG state is wrong size")
        self._seed, self._offset = struct.unpack("<QQ", bytes(state.tolist()))
        self._has_seeded_cudnn = False
        return self

    def get_offset(self) -> int:
        return self._offset

    def set_offset(self, offset: int) -> None:
        self._offset = offset
        self._has_seeded_cudnn = False

    def clone_state(self) -> CudaGenerator:
        return CudaGenerator(self._index, self._seed, self._offset)
