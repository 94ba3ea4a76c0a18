"""Random numbers: a seed and an offset, which the host keeps and advances, as CUDA's generator does.

Each op gets a generator of its own made from them, so the numbers do not depend on when the worker runs, and the CPU's
generator is left alone.  They are not the numbers that CUDA would draw.
"""

from __future__ import annotations

import itertools
import struct
import threading
import weakref
from typing import Any

import torch

from syncagent.simulate import devices

__all__ = ["CudaGenerator", "Generator", "RealGenerator", "default_state", "draw"]

RealGenerator: Any = torch.Generator
DEFAULT_SEED = 67280421310721  # torch's own default_rng_seed_val
_MIX_SEED, _MIX_OFFSET = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9
_lock = threading.Lock()
_tokens = itertools.count(0x51C_A6E27_0000_0000)


class State:
    """Seed and offset."""

    __slots__ = ("__weakref__", "offset", "seed")

    def __init__(self, seed: int = DEFAULT_SEED) -> None:
        self.seed = seed
        self.offset = 0

    def set_seed(self, seed: int) -> None:
        self.seed = seed & (2**64 - 1)
        self.offset = 0

    def next(self) -> Any:
        """A fresh CPU generator for one op."""
        with _lock:
            self.offset += 4
            mixed = (self.seed * _MIX_SEED + self.offset * _MIX_OFFSET) & 0x7FFF_FFFF_FFFF_FFFF
        generator = RealGenerator()
        generator.manual_seed(mixed)
        return generator

    def pack(self) -> torch.Tensor:
        """The sixteen bytes of CUDA's generator state."""
        return torch.frombuffer(bytearray(struct.pack("<QQ", self.seed, self.offset)), dtype=torch.uint8)

    def unpack(self, packed: torch.Tensor) -> None:
        if packed.dtype != torch.uint8 or packed.numel() != 16:
            raise RuntimeError("RNG state is wrong size")
        self.seed, self.offset = struct.unpack("<QQ", bytes(packed.tolist()))


_defaults: dict[int, State] = {}
_states: weakref.WeakValueDictionary[int, State] = weakref.WeakValueDictionary()


def default_state(index: int) -> State:
    return _defaults.setdefault(index, State())


def draw(index: int, generator: Any) -> Any:
    """A CPU generator for one op on a device, from the given generator or the device's own."""
    if generator is None:
        return default_state(index).next()
    # C++ hands over another Python object than the program made: the seed of torch's own generator identifies it.
    state = _states.get(generator.initial_seed()) if type(generator) is not CudaGenerator else generator._state
    if state is not None:
        return state.next()
    raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")


class _ByDevice(type):
    """``torch.Generator(device)`` makes torch's own generator, or a simulated one for CUDA."""

    def __call__(cls, device: Any = "cpu") -> Any:
        device = torch.device(device)
        if device.type != "cuda":
            return RealGenerator(device)
        return make_generator(devices.index_of(device), State())

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, RealGenerator)

    def __subclasscheck__(cls, subclass: type) -> bool:
        return issubclass(subclass, RealGenerator)


class Generator(metaclass=_ByDevice):
    """Takes the place of ``torch.Generator``."""


class CudaGenerator(RealGenerator):  # type: ignore[misc]  # RealGenerator is Any
    """A generator for a simulated device."""

    _state: State
    _index: int

    @property
    def device(self) -> torch.device:
        return devices.shown(self._index)

    def manual_seed(self, seed: int) -> CudaGenerator:
        self._state.set_seed(seed)
        return self

    def seed(self) -> int:
        self._state.set_seed(RealGenerator().seed())
        return self._state.seed

    def initial_seed(self) -> int:
        return self._state.seed

    def get_state(self) -> torch.Tensor:
        return self._state.pack()

    def set_state(self, state: torch.Tensor) -> CudaGenerator:
        self._state.unpack(state)
        return self

    def get_offset(self) -> int:
        return self._state.offset

    def set_offset(self, offset: int) -> None:
        self._state.offset = offset

    def clone_state(self) -> CudaGenerator:
        state = State(self._state.seed)
        state.offset = self._state.offset
        return make_generator(self._index, state)


def make_generator(index: int, state: State) -> CudaGenerator:
    """A generator for a device; the one with :func:`default_state` is the device's own."""
    made: CudaGenerator = CudaGenerator("cpu")
    made._index, made._state = index, state
    token = next(_tokens)
    RealGenerator.manual_seed(made, token)
    _states[token] = state
    return made
