"""The programs of the suite: which there are, what each is of, and how its numbers compare with the CPU's."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

DRIVERS = Path(__file__).with_name("drivers")

EQUAL = "equal"
"""Every number and every bit of the weights is that of the same program on the CPU."""
RANDOM = "random numbers of its own"
"""It draws random numbers on the device, whose generator is not the CPU's: finite, and the same in two runs."""
MIXED = "16 bits"
"""It computes in 16 bits on CUDA, and in 32 on the CPU: finite, and the same in two runs."""


@dataclass(frozen=True)
class Program:
    """A driver in drivers/ and what to expect of it."""

    name: str
    package: str
    """The distribution whose code it runs."""
    does: str
    numbers: str = EQUAL

    @property
    def path(self) -> Path:
        """The script."""
        return DRIVERS / f"{self.name}.py"


PROGRAMS = (
    Program("trainer_gpt2", "transformers", "Trainer: training, evaluation, checkpoint and resuming"),
    Program("trainer_bert_fp16", "transformers", "Trainer with fp16 and a gradient scaler", MIXED),
    Program("trainer_llama_bf16", "transformers", "Trainer with bf16, accumulation and checkpointing", MIXED),
    Program("generate_greedy", "transformers", "generate: greedy and by beams"),
    Program("generate_sampling", "transformers", "generate: sampling with top-k and top-p", RANDOM),
)
"""In the order of the table."""
