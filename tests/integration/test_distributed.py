"""Several ranks on simulated devices under torchrun: a device for each, and gloo between them."""

from __future__ import annotations

import json

import pytest

from tests.processes import free_port

COLLECTIVES = """
import json, os
import torch
import torch.distributed as dist

rank = int(os.environ["LOCAL_RANK"])
device = torch.device("cuda", rank)
torch.cuda.set_device(device)
dist.init_process_group("nccl", device_id=device)
found = {"devices": torch.cuda.device_count(), "backend": dist.get_backend()}

def cuda(*values):
    return torch.tensor(values, device=device)

def empty(count):
    return torch.empty(count, device=device)

x = cuda(1.0, 2.0) * (rank + 1)
dist.all_reduce(x)
found["all_reduce"] = x.tolist()
x = cuda(1.0, 2.0) * (rank + 1)
dist.all_reduce(x, op=dist.ReduceOp.AVG)
found["mean"] = x.tolist()
x = cuda(float(rank))
dist.broadcast(x, 1)
found["broadcast"] = x.tolist()
both = [empty(1), empty(2)]
dist.all_gather(both, torch.full((rank + 1,), float(rank), device=device))
found["all_gather, uneven"] = [each.tolist() for each in both]
x = empty(4)
dist.all_gather_into_tensor(x, cuda(rank, rank + 0.5))
found["all_gather_into_tensor"] = x.tolist()
x = empty(2)
dist.reduce_scatter_tensor(x, cuda(1.0, 2.0, 3.0, 4.0) * (rank + 1))
found["reduce_scatter_tensor"] = x.tolist()
x = empty(2)
dist.reduce_scatter(x, [cuda(1.0, 2.0), cuda(3.0, 4.0)])
found["reduce_scatter"] = x.tolist()
both = [empty(1), empty(1)]
dist.all_to_all(both, [cuda(rank * 10.0), cuda(rank * 10.0 + 1)])
found["all_to_all"] = [each.tolist() for each in both]
x = empty([1, 3][rank])
sizes = [[1, 0], [2, 1]][rank]
dist.all_to_all_single(x, cuda(4.0) if rank else cuda(1.0, 2.0, 3.0), sizes, [[1, 2], [0, 1]][rank])
found["all_to_all_single, uneven"] = x.tolist()
both = [empty(1), empty(1)] if rank == 0 else None
dist.gather(cuda(float(rank)), both)
found["gather"] = both and [each.tolist() for each in both]
x = empty(1)
dist.scatter(x, [cuda(5.0), cuda(6.0)] if rank == 0 else None)
found["scatter"] = x.tolist()
x = cuda(rank + 1.0)
dist.reduce(x, 0)
found["reduce"] = x.tolist()
sent, got = torch.full((300_000,), float(rank), device=device), empty(300_000)
for work in dist.batch_isend_irecv([dist.P2POp(dist.isend, sent, 1 - rank), dist.P2POp(dist.irecv, got, 1 - rank)]):
    work.wait()
found["batch_isend_irecv"] = got.unique().tolist()
if rank == 0:
    dist.send(sent + 7, 1)
else:
    dist.recv(got, 0)
    found["recv"] = got.unique().tolist()
objects = [None, None]
dist.all_gather_object(objects, {"rank": rank})
found["all_gather_object"] = objects
x = cuda(1.0)
works = [dist.all_reduce(x, async_op=True) for _ in range(5)]
works[-1].wait()
found["async"] = x.item()
evens = dist.new_group([0])
x = cuda(1.0)
if rank == 0:
    dist.all_reduce(x, group=evens)
found["group of one"] = x.item()
dist.barrier()
print(json.dumps(found))
dist.destroy_process_group()
"""

EXPECTED = {
    "devices": [2, 2],
    "backend": ["nccl", "nccl"],
    "all_reduce": [[3.0, 6.0], [3.0, 6.0]],
    "mean": [[1.5, 3.0], [1.5, 3.0]],
    "broadcast": [[1.0], [1.0]],
    "all_gather, uneven": [[[0.0], [1.0, 1.0]], [[0.0], [1.0, 1.0]]],
    "all_gather_into_tensor": [[0.0, 0.5, 1.0, 1.5], [0.0, 0.5, 1.0, 1.5]],
    "reduce_scatter_tensor": [[3.0, 6.0], [9.0, 12.0]],
    "reduce_scatter": [[2.0, 4.0], [6.0, 8.0]],
    "all_to_all": [[[0.0], [10.0]], [[1.0], [11.0]]],
    "all_to_all_single, uneven": [[1.0], [2.0, 3.0, 4.0]],
    "gather": [[[0.0], [1.0]], None],
    "scatter": [[5.0], [6.0]],
    "reduce": [[3.0], [2.0]],
    "batch_isend_irecv": [[1.0], [0.0]],
    "recv": [None, [7.0]],
    "all_gather_object": [[{"rank": 0}, {"rank": 1}], [{"rank": 0}, {"rank": 1}]],
    "async": [32.0, 32.0],
    "group of one": [1.0, 1.0],
}


@pytest.fixture
def ranks(python, tmp_path):
    """``ranks(program, count, *words)``: what each rank has printed as its last line, as JSON, in the ranks' order."""

    def run(program, count, *words, simulate="1", **variables):
        (tmp_path / "train.py").write_text(program)
        own = {"OMP_NUM_THREADS": "1", "SYNCAGENT_SIMULATE": simulate, **variables}
        launcher = ("-W", "ignore", "-m", "torch.distributed.run", "--nproc-per-node", count)
        launcher += ("--master-port", free_port(), "--redirects", "3", "--log-dir", "logs")
        done = python(*launcher, "train.py", *words, **own)
        logs = sorted(tmp_path.glob("logs/*/attempt_0/*"))
        errors = "\n".join((log / "stderr.log").read_text() for log in logs)
        assert done.returncode == 0, errors or done.stderr
        printed = [(log / "stdout.log").read_text().splitlines()[-1] for log in logs]
        for log in logs:
            for file in log.iterdir():
                file.unlink()
            log.rmdir()
        return [json.loads(line) for line in printed], errors

    return run


def test_every_collective_gives_each_rank_what_nccl_would(ranks):
    found, errors = ranks(COLLECTIVES, 2)
    assert {name: [one.get(name) for one in found] for name in EXPECTED} == EXPECTED
    assert errors.count("gloo stands in for NCCL") == 2  # once a process
