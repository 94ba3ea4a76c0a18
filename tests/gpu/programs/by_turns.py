"""Training programs that wait for their turn before the first step; overhead_default.py runs them.

    TURNS=IN,OUT python by_turns.py PROGRAM [--first 20] [--steps 200] [--slices 8] [--small]

Several copies of a program, of which some are watched, can so be prepared at the same time and run one after another.
The programs are as users write them and do not know of the agent.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DEVICE = "cuda"
_MANY = 1_000_000
_PACED = 50


class EndedError(Exception):
    """All steps have been run."""


_LEAD = 2
"""Steps of a turn that are not timed: the GPU has been another program's meanwhile."""


class Turns:
    """Times the first steps, and then slices of the others; for each it waits for its turn."""

    def __init__(self, first: int, steps: int, slices: int) -> None:
        read, _, write = os.environ["TURNS"].partition(",")
        self._read = os.fdopen(int(read), "rb", 0)
        self._write = os.fdopen(int(write), "wb", 0)
        self._parts = [*(steps // slices for _ in range(slices)), first]
        self._lead = 0
        self._steps = self._left = 0
        self._began = (0, 0.0, 0.0)
        self.extra: list[int] = []
        """What else a program has measured since."""

    def begin(self) -> None:
        """Wait for the turn; everything is prepared."""
        self._tell({"ready": True, "gpu": torch.cuda.get_device_name()})
        self._next(lead=0)

    def step(self) -> None:
        """A step has ended."""
        if self._lead:
            self._lead -= 1
            if not self._lead:
                self._start()
            return
        self._left -= 1
        if self._left:
            return
        torch.cuda.synchronize()
        wall, cpu, everything = time.perf_counter_ns(), time.thread_time(), time.process_time()
        began = self._began
        record: dict[str, Any] = {
            "steps": self._steps, "wall_ms": (wall - began[0]) / 1e6, "cpu_ms": (cpu - began[1]) * 1e3,
            "process_ms": (everything - began[2]) * 1e3, "dynamo": dynamo(), "extra": self.extra,
        }  # fmt: skip
        self.extra = []
        self._tell(record)
        self._next(lead=_LEAD)

    def _next(self, lead: int) -> None:
        """Wait for the next turn; the last comes when all copies have had theirs, since ending takes time, too."""
        if self._read.read(1) != b"g" or not self._parts:
            raise EndedError
        self._left = self._steps = self._parts.pop()
        self._lead = lead
        if not lead:
            self._start()

    def _start(self) -> None:
        torch.cuda.synchronize()
        self.extra = []
        self._began = (time.perf_counter_ns(), time.thread_time(), time.process_time())

    def _tell(self, record: dict[str, Any]) -> None:
        rest = json.dumps(record).encode() + b"\n"
        while rest:
            rest = rest[self._write.write(rest) :]


def dynamo() -> dict[str, int]:
    """Return how many graphs and frames torch.compile has made so far."""
    module = sys.modules.get("torch._dynamo.utils")
    if module is None:
        return {}
    counters = module.counters
    return {"graphs": counters["stats"]["unique_graphs"], "frames": counters["frames"]["total"]}


# --- the three programs ---------------------------------------------------------------------------------------


class Tokens(torch.utils.data.Dataset):
    def __init__(self, count: int, length: int, vocabulary: int) -> None:
        self.rows = torch.randint(0, vocabulary, (count, length), generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.rows[index], "labels": self.rows[index]}


def trainer(turns: Turns, small: bool) -> None:
    """transformers' Trainer, GPT-2 of 6 layers of 512, bf16."""
    from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments

    class Marks(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            turns.begin()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            turns.step()

    layers, width, length = (1, 32, 16) if small else (6, 512, 256)
    config = GPT2Config(
        vocab_size=2048, n_positions=length, n_embd=width, n_layer=layers, n_head=4, bos_token_id=0, eos_token_id=0
    )
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder, per_device_train_batch_size=2 if small else 8, max_steps=_MANY, logging_steps=50,
            report_to="none", save_strategy="no", bf16=True, disable_tqdm=True,
        )  # fmt: skip
        Trainer(
            model=GPT2LMHeadModel(config), args=arguments, train_dataset=Tokens(4096, length, 2048), callbacks=[Marks()]
        ).train()


class Images(torch.utils.data.Dataset):
    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return _MANY

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.full((3, self.size, self.size), index % 7 / 7.0), index % 100


def resnet(turns: Turns, small: bool) -> None:
    """timm's resnet50, fp16 AMP, a DataLoader with workers."""
    if small:
        net: nn.Module = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 100)
        )
    else:
        import timm

        net = timm.create_model("resnet50", num_classes=100)
    net.to(DEVICE)
    loader = torch.utils.data.DataLoader(
        Images(16 if small else 224), batch_size=2 if small else 32, num_workers=1 if small else 4, pin_memory=True
    )
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    scaler = torch.amp.GradScaler(DEVICE)
    losses = 0.0
    turns.begin()
    for images, labels in loader:
        images, labels = images.to(DEVICE, non_blocking=True), labels.to(DEVICE, non_blocking=True)
        optimizer.zero_grad()
        with torch.autocast(DEVICE, torch.float16):
            loss = nn.functional.cross_entropy(net(images), labels)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses += loss.item()
        turns.step()


def bert_model(small: bool) -> nn.Module:
    from transformers import BertConfig, BertForMaskedLM

    layers, width = (1, 32) if small else (6, 256)
    config = BertConfig(
        vocab_size=2048, hidden_size=width, num_hidden_layers=layers, num_attention_heads=4,
        intermediate_size=4 * width, max_position_embeddings=128,
    )  # fmt: skip
    return BertForMaskedLM(config)


def bert_loop(
    turns: Turns | Leading | Following, small: bool, model: Callable[..., Any], parameters: Iterator[Any]
) -> None:
    optimizer = torch.optim.AdamW(parameters, lr=1e-4)
    rows = Tokens(2048, 16 if small else 128, 2048).rows
    batch = 2 if small else 16
    seen = 0.0
    turns.begin()
    for index in range(_MANY):
        tokens = rows[index * batch % 2048 :][:batch].to(DEVICE)
        loss = model(input_ids=tokens, labels=tokens).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seen += loss.item()
        turns.step()


def bert(turns: Turns, small: bool) -> None:
    """transformers' BERT of 6 layers of 256 in a loop of one's own."""
    model = bert_model(small).to(DEVICE)
    bert_loop(turns, small, model, model.parameters())


# --- the same under torch.compile, FSDP2 and DDP ----------------------------------------------------------------------


def compiled(turns: Turns, small: bool) -> None:
    model = bert_model(small).to(DEVICE)
    run = torch.compile(model, backend="eager" if small else "inductor")
    bert_loop(turns, small, run, model.parameters())


def fsdp2(turns: Turns, small: bool) -> None:
    from torch.distributed.fsdp import fully_shard

    _join(0, 1)
    model = bert_model(small).to(DEVICE)
    for layer in model.bert.encoder.layer:
        fully_shard(layer)
    fully_shard(model)
    bert_loop(turns, small, model, model.parameters())


class Leading:
    """The turns of the first rank, which tells the second when a step begins.

    A rank that ran ahead would wait in a collective, in a kernel that takes its GPU from the copy whose turn it is.
    """

    def __init__(self, turns: Turns, second: int) -> None:
        self._turns, self._second = turns, second

    def begin(self) -> None:
        self._turns.begin()
        os.write(self._second, b"s")

    def step(self) -> None:
        self._turns.step()
        os.write(self._second, b"s")


class Following:
    """The turns of the second rank."""

    def begin(self) -> None:
        self.step()

    def step(self) -> None:
        if not os.read(int(os.environ["LED"]), 1):
            raise EndedError


def ddp(turns: Turns, small: bool) -> None:
    """DDP over the GPUs that there are, two at most."""
    ranks = min(torch.cuda.device_count(), 2)
    store = Path(tempfile.mkdtemp(), "store")
    words = [sys.executable, __file__, "second rank", *(["--small"] if small else [])]
    follows, leads = os.pipe()
    environment = {**os.environ, "STORE": str(store), "LED": str(follows)}
    other = subprocess.Popen(words, env=environment, pass_fds=(follows,)) if ranks == 2 else None
    try:
        _join(0, ranks, store)
        model = nn.parallel.DistributedDataParallel(bert_model(small).to(DEVICE), device_ids=[0])
        bert_loop(Leading(turns, leads), small, model, model.parameters())
    finally:
        if other is not None:
            other.terminate()


def second_rank(_turns: Any, small: bool) -> None:
    torch.cuda.set_device(1)
    _join(1, 2, Path(os.environ["STORE"]))
    model = nn.parallel.DistributedDataParallel(bert_model(small).to("cuda:1"), device_ids=[1])
    bert_loop(Following(), small, model, model.parameters())


def _join(rank: int, ranks: int, store: Path | None = None) -> None:
    from torch import distributed

    path = store or Path(tempfile.mkdtemp(), "store")
    distributed.init_process_group(
        "nccl", store=distributed.FileStore(str(path), ranks), rank=rank, world_size=ranks,
        device_id=torch.device(DEVICE, rank),
    )  # fmt: skip


# --- what the agent itself costs -------------------------------------------------------------------------------------


def host_bound(turns: Turns, small: bool) -> None:
    """A step of many small ops, which the GPU is done with long before the host."""
    net = nn.Sequential(*(part for _ in range(2 if small else 60) for part in (nn.Linear(64, 64), nn.LayerNorm(64))))
    net.to(DEVICE)
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-4, momentum=0.9)
    rows = torch.rand(32, 64, device=DEVICE)
    seen = 0.0
    turns.begin()
    while True:
        optimizer.zero_grad()
        loss = net(rows).square().mean()
        loss.backward()
        optimizer.step()
        seen += loss.item()
        turns.step()


def paced(turns: Turns, small: bool) -> None:
    """A thousand reads a second, with small ops of the host in between; each read is timed."""
    value = torch.ones((), device=DEVICE)
    weight = torch.ones(8, device=DEVICE, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=0.1)
    x, y, z = torch.ones(64), torch.ones(64), torch.empty(64)
    now = time.perf_counter_ns
    period_ns = 1_000_000
    turns.begin()
    while True:
        due = now()
        for _ in range(5 if small else _PACED):
            while now() < due:
                torch.add(x, y, out=z)
            began = now()
            value.item()
            turns.extra.append(now() - began)
            due += period_ns
        weight.sum().backward()
        optimizer.step()
        turns.step()


PROGRAMS: dict[str, Callable[[Turns, bool], None]] = {
    "trainer": trainer, "resnet": resnet, "bert": bert, "compiled": compiled, "fsdp2": fsdp2, "ddp": ddp,
    "host-bound": host_bound, "paced": paced, "second rank": second_rank,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("program", choices=PROGRAMS)
    parser.add_argument("--first", type=int, default=20)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--slices", type=int, default=8)
    parser.add_argument("--small", action="store_true")
    options = parser.parse_args()
    torch.manual_seed(0)
    turns = Turns(options.first, options.steps, options.slices) if options.program != "second rank" else None
    try:
        PROGRAMS[options.program](turns, options.small)  # type: ignore[arg-type]  # the second rank has none
    except EndedError:
        pass
    agent = sys.modules.get("syncagent")
    watched = agent is not None and agent.current() is not None
    Path(os.environ["TURNS_WATCHED"]).write_text(json.dumps(watched), encoding="utf-8")


if __name__ == "__main__":
    main()
