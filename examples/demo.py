"""``make demo``: the masked loss under syncagent, before and after its fixes, on the GPU or on the simulated device."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent


def main() -> None:
    simulate = not torch.cuda.is_available()
    if simulate:
        print("No GPU here: the simulated CUDA device stands in; its waits are real, its times are this CPU's.\n")
    # Small on the simulated device, whose arithmetic is the CPU's.
    size = ["--batch", "1", "--size", "96", "--steps", "6"] if simulate else ["--batch", "8", "--steps", "50"]
    for variant, what in ((0, "as it was written"), (3, "with all three waits fixed")):
        print(f"$ syncagent run {'--simulate ' * simulate}examples/masked_loss/train.py --variant {variant}   # {what}")
        sys.stdout.flush()
        command = [
            sys.executable, "-m", "syncagent", "run", *(["--simulate"] * simulate),
            str(HERE / "masked_loss" / "train.py"), "--variant", str(variant), "--device", "cuda", *size,
        ]  # fmt: skip
        subprocess.run(command, check=True)
        print()


if __name__ == "__main__":
    main()
