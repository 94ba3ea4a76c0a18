"""The same training as a rank of a job: ``torchrun --nproc-per-node 2 ranks.py [arguments of train.py]``.

After each step the ranks wait for each other on the host, where DDP's would in the backward pass.
"""

from __future__ import annotations

import torch.distributed as dist
import train
from torch.optim.optimizer import register_optimizer_step_post_hook

if __name__ == "__main__":
    dist.init_process_group("gloo")
    register_optimizer_step_post_hook(lambda *_: dist.barrier())
    train.main()
    dist.destroy_process_group()
