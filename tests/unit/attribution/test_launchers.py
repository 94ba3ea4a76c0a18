"""Which command lines belong to processes that only start ranks."""

from __future__ import annotations

import pytest

from syncagent.attribution import ranks
from syncagent.attribution.processes import is_launcher

LAUNCHERS = [
    "python -m torch.distributed.run train.py",
    "python -um torch.distributed.run train.py",
    "python -mtorch.distributed.run train.py",
    "python -Xdev -m torch.distributed.run train.py",
    "python -X dev -W error -u -m torch.distributed.launch train.py",
    "python -uXdev -m torch.distributed.run train.py",
    "python -IuW error -mtorch.distributed.run train.py",
    "python --check-hash-based-pycs never -m torch.distributed.run train.py",
    "python -m torch.distributed.elastic.agent.server train.py",
    "python -m accelerate.commands.launch train.py",
    "python -m accelerate.commands.accelerate_cli launch train.py",
    "python -m deepspeed.launcher.launch train.py",
    "python -m deepspeed.launcher.runner train.py",
    "python -m horovod.runner train.py",
    "python -m lightning.fabric.cli run train.py",
    "python -m lightning run model train.py",
    "python /opt/venv/bin/torchrun train.py",
    "python -u /opt/venv/bin/torchrun train.py",
    "python ./bin/accelerate launch train.py",
    "python /opt/venv/bin/deepspeed train.py",
    "python /opt/venv/bin/lightning run model train.py",
    "python /opt/venv/bin/fabric run train.py",
    "python /opt/venv/bin/ray start --head",
    "python /opt/venv/bin/horovodrun -np 2 train.py",
    "python /opt/venv/lib/python3.11/site-packages/torch/distributed/run.py train.py",
    "python ../torch/distributed/launch.py train.py",
]

OTHERS = [
    "python",
    "python -c pass -m torch.distributed.run",
    "python -cpass",
    "python -",
    "python train.py",
    "python train.py -m torch.distributed.run",
    "python -u train.py torchrun",
    "python -m train torchrun",
    "python -m torch.distributed.runner",
    "python -m torch.utils.collect_env",
    "python -m mytorch.distributed.run",
    "python -X torch.distributed.run train.py",
    "python -W torchrun train.py",
    "python -m",
    "python run.py",
    "python distributed/run.py",
    "python launch.py",
    "python torchrun.py",
    "python /opt/venv/bin/lightning fit",
    "python /opt/venv/bin/fabric",
    "python -m lightning",
    "python /opt/ray/_private/workers/default_worker.py",
]


@pytest.mark.parametrize("line", LAUNCHERS)
def test_a_process_that_only_starts_ranks_is_known_however_it_was_called(line):
    assert is_launcher(line.split())


@pytest.mark.parametrize("line", OTHERS)
def test_any_other_process_is_no_launcher(line):
    assert not is_launcher(line.split())


def test_this_process_is_none():
    assert not is_launcher()


@pytest.mark.parametrize(
    ("environment", "count"),
    [({}, 1), ({"LOCAL_WORLD_SIZE": "4"}, 4), ({"OMPI_COMM_WORLD_LOCAL_SIZE": "2"}, 2), ({"LOCAL_WORLD_SIZE": "0"}, 1)],
)
def test_how_many_ranks_are_on_this_machine(environment, count):
    assert ranks.on_this_machine(environment) == count
