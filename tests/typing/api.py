"""The public interface as type checkers see it; never run.  Each ignored error is one that they have to find.

tests/unit/test_typing.py checks this file under mypy and pyright.
"""

# pyright: strict, reportUnnecessaryTypeIgnoreComment=true
from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Literal, TypeVar

from typing_extensions import assert_type

import syncagent
from syncagent.attribution.ranks import Rank


@syncagent.watch(policy="warn", warmup_steps=0)
def step(batch: int) -> float:
    return batch / 2


@syncagent.watch()
async def evaluate(name: str) -> int:
    return len(name)


@syncagent.watch
def plain(batch: int, *, scale: float = 1.0) -> float:
    return batch * scale


@syncagent.watch
async def later(name: str) -> int:
    return len(name)


@syncagent.watch
def batches(count: int) -> Iterator[str]:
    yield from map(str, range(count))


@syncagent.watch
async def arriving(count: int) -> AsyncIterator[str]:
    yield str(count)


T = TypeVar("T")


@syncagent.watch
def same(value: T) -> T:
    return value


class Trainer:
    @syncagent.watch
    def fit(self, epochs: int) -> str:
        return str(epochs)

    @syncagent.watch(policy="raise")
    async def validate(self, name: str) -> bool:
        return bool(name)

    @classmethod
    @syncagent.watch
    def make(cls, name: str) -> list[str]:
        return [name, cls.__name__]

    @staticmethod
    @syncagent.watch
    def load() -> bytes:
        return b""


async def calling(trainer: Trainer) -> None:
    assert_type(plain(1, scale=2.0), float)
    assert_type(await later("x"), int)
    assert_type(batches(3), Iterator[str])
    assert_type(same(3), int)
    assert_type(same("x"), str)
    async for value in arriving(2):
        assert_type(value, str)
    assert_type(trainer.fit(3), str)
    assert_type(await trainer.validate("x"), bool)
    assert_type(Trainer.make("x"), list[str])
    assert_type(trainer.load(), bytes)


def reporting(trainer: Trainer) -> None:
    assert_type(plain.report(), syncagent.Report)
    assert_type(plain.agent, syncagent.Agent | None)
    assert_type(step.report(), syncagent.Report)
    assert_type(later.report(), syncagent.Report)
    assert_type(trainer.fit.report(), syncagent.Report)
    assert_type(Trainer.fit.report(), syncagent.Report)
    assert_type(trainer.validate.agent, syncagent.Agent | None)
    assert_type(plain.__name__, str)


def watching() -> None:
    with syncagent.watch(
        policy="raise",
        detail="auto",
        overhead=0.02,
        report=Path("report.json"),
        allow=["train.py:10", "package.module"],
        allow_kinds="explicit",
        allow_packs=("torch",),
        max_syncs_per_step={"forward": 2},
        max_stall_ms_per_step=1.5,
        judge_threads="all",
        copies="off",
        simulate=True,
        summary=None,
    ) as agent:
        assert_type(agent, syncagent.Agent)
        assert_type(agent.running, bool)
        assert_type(agent.rank, Rank)
        assert_type(agent.settings, syncagent.Settings)
        assert_type(agent.policy, Literal["observe", "warn", "raise"])
        agent.policy = "warn"
        agent.measure_cost(steps=10)
        agent.flush()
        for event in agent.events():
            assert_type(event, syncagent.SyncEvent)
            assert_type(event.stall_ns, int)
            assert_type(event.kind, syncagent.SyncKind)
            assert_type(event.phase, syncagent.Phase)
            assert_type(event.site, syncagent.CallSite | None)
        report = agent.report()
        assert_type(report, syncagent.Report)
        assert_type(report.to_text(width=80, verbose=True), str)
        assert_type(report.to_markdown(), str)
        assert_type(agent.save(report), str | None)
        assert_type(agent.stop(), syncagent.Report)


def starting() -> None:
    assert_type(syncagent.start(policy="observe", max_events=5), syncagent.Agent)
    assert_type(syncagent.current(), syncagent.Agent | None)
    assert_type(syncagent.stop(), syncagent.Report)
    syncagent.step()
    syncagent.step(7)
    with syncagent.allow("the loss is logged"):
        pass
    assert_type(step(1), float)


async def decorated() -> None:
    assert_type(await evaluate("x"), int)


def errors() -> None:
    try:
        syncagent.start()
    except syncagent.HostSyncError as error:
        assert_type(error.event, syncagent.SyncEvent | None)
    except syncagent.ConfigError as error:
        as_root: syncagent.SyncAgentError = error
        as_value_error: ValueError = error
        print(as_root, as_value_error)


def mistakes(agent: syncagent.Agent) -> None:
    syncagent.watch(policy="rise")  # type: ignore[call-overload]
    syncagent.watch(detail="all")  # type: ignore[call-overload]
    syncagent.watch(copies="some")  # type: ignore[call-overload]
    syncagent.watch(judge_threads="none")  # type: ignore[call-overload]
    syncagent.start(warmup_steps="many")  # type: ignore[arg-type]
    syncagent.start(polcy="raise")  # type: ignore[call-arg]
    agent.policy = "off"  # type: ignore[assignment]
    agent.regions  # type: ignore[attr-defined]
    agent._pipeline  # type: ignore[attr-defined]
    step("1")  # type: ignore[arg-type]
    plain("1")  # type: ignore[arg-type]
    plain(1, size=2.0)  # type: ignore[call-arg]
    Trainer().fit("3")  # type: ignore[arg-type]
    Trainer().fit()  # type: ignore[call-arg]
    plain.reports()  # type: ignore[attr-defined]
    syncagent.watch(plain, policy="raise")  # type: ignore[call-overload]
