"""What waits, and inside which op: every case of the corpus behind a sleeping GPU, with every op of the device hooked.

    python tests/gpu/explore.py --out FILE.json [--limit N] [--match TEXT]

The physical test says whether a case waits; Python kernels on all of aten say where, whatever the rules say.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import datetime as dt
import faulthandler
import itertools
import json
import platform
import sys
import threading
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __package__ in {None, ""}:
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from tests.gpu import physical
from tests.gpu.corpus import CASES
from tests.gpu.corpus.names import DEVICE

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.gpu.corpus import Case

__all__ = ["environment", "main", "save"]

KEYS = ("CUDA", "SparseCUDA", "SparseCsrCUDA", "NestedTensorCUDA") if DEVICE == "cuda" else ("CPU",)
_FALLBACKS = ("CompositeExplicitAutograd", "CompositeExplicitAutogradNonFunctional")
"""Keys of kernels that serve every device, such as ``copy_``'s."""
_LASTED = 0.4
"""A hooked call is of interest if it lasted this share of the sleep."""
_SAVE_EVERY = 100

_now = time.perf_counter_ns


class Hooks:
    """A Python kernel on each op of aten that has a kernel for the device; keeps the calls that last."""

    def __init__(self) -> None:
        self.threshold_ns = 0
        self.seen: list[tuple[int, int, int, int, str, str]] = []
        """Thread, start, end, depth, op, key of each call that lasted; in the order of their ends."""
        self.count = 0
        self.refused: dict[str, str] = {}
        self._local = threading.local()
        self._library: Any = None

    def put(self) -> None:
        self._library = torch.library.Library("aten", "IMPL")
        has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for op in torch._C._dispatch_get_all_op_names():
                if not op.startswith("aten::") or has_kernel(op, "CompositeImplicitAutograd") or _is_view(op):
                    continue
                serves_all = any(has_kernel(op, key) for key in _FALLBACKS)
                for key in KEYS:
                    if has_kernel(op, key) or (serves_all and _computed(op, key)):
                        self._put(op, key)

    def _put(self, op: str, key: str) -> None:
        try:
            original = torch.library.get_kernel(op, key)
            kernel = self._kernel(op, key, original.call_boxed)
            self._library.impl(op.removeprefix("aten::"), kernel, key, with_keyset=True)
            self.count += 1
        except Exception as error:
            self.refused[f"{op} on {key}"] = physical.describe(error)

    def _kernel(self, op: str, key: str, call: Any) -> Any:
        local, seen = self._local, self.seen
        hooks = self
        tensors = [index for index, argument in enumerate(_schema(op).arguments) if "Tensor" in str(argument.type)]

        def kernel(keyset: Any, *args: Any, **kwargs: Any) -> Any:
            args = _boxable(args, tensors)
            depth = local.depth = getattr(local, "depth", 0) + 1
            started = _now()
            try:
                return call(keyset, *args, **kwargs)
            finally:
                ended = _now()
                local.depth = depth - 1
                if ended - started >= hooks.threshold_ns > 0:
                    seen.append((threading.get_ident(), started, ended, depth, op, key))

        return kernel

    def take_off(self) -> None:
        if self._library is not None:
            self._library._destroy()
            self._library = None

    @contextlib.contextmanager
    def watching(self, sleep_ms: float) -> Iterator[None]:
        """Keep calls that last while a case runs; in between, the harness's own are of no interest."""
        self.seen.clear()
        self.threshold_ns = int(sleep_ms * _LASTED * 1e6)
        try:
            yield
        finally:
            self.threshold_ns = 0

    def nest(self, run: physical.Timed) -> list[list[Any]]:
        """Return what lasted within a run, outer calls first, as ``[depth, op, key, ms]``."""
        calls = [call for call in self.seen if run.start_ns <= call[1] and call[2] <= run.end_ns]
        calls.sort(key=lambda call: (call[1], call[3]))
        return [[depth, op, key, round((end - start) / 1e6, 3)] for _, start, end, depth, op, key in calls]


def _schema(op: str) -> Any:
    name, _, overload = op.partition(".")
    return torch._C._get_schema(name, overload)


def _is_view(op: str) -> bool:
    """Tell views, which never wait, apart: ``nn.Parameter`` wants what ``detach`` returns never to have met Python."""
    infos = [value.alias_info for value in _schema(op).returns]
    return any(info is not None and not info.is_write for info in infos)


def _boxable(args: tuple[Any, ...], tensors: Sequence[int]) -> tuple[Any, ...]:
    """Give numbers that stand for tensors (the 2 of ``t * 2``) their tensors back, which a boxed call insists on.

    The dtype is the other tensor's wherever the promotion of a number would keep that.
    """
    numbers = [index for index in tensors if index < len(args) and isinstance(args[index], (bool, int, float, complex))]
    if not numbers:
        return args
    others = [args[index].dtype for index in tensors if index < len(args) and isinstance(args[index], torch.Tensor)]
    made = list(args)
    for index in numbers:
        dtype = torch.tensor(args[index], device="cpu").dtype
        if others:
            dtype = others[0] if torch.can_cast(dtype, others[0]) else torch.promote_types(dtype, others[0])
        made[index] = torch.scalar_tensor(args[index], dtype=dtype, device="cpu")
    return tuple(made)


def _computed(op: str, key: str) -> bool:
    try:
        return bool(torch._C._dispatch_has_computed_kernel_for_dispatch_key(op, key))
    except RuntimeError:
        return False


def innermost(nest: Sequence[Sequence[Any]]) -> list[str]:
    """Return the calls of a nest that hold no other: each is followed by one no deeper, or by none."""
    found = []
    for here, after in itertools.zip_longest(nest, nest[1:]):
        if after is None or after[0] <= here[0]:
            found.append(f"{here[1]} on {here[2]}")
    return found


def warned(case: Case) -> bool:
    """Return whether torch's own sync debug mode warns about the case."""
    if not physical.SLEEPS:
        return False
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        heard.clear()
        try:
            names = physical.fresh()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                case.prepare(names)
            heard.clear()
            case.run(names)
            return any("synchronizing CUDA operation" in str(warning.message) for warning in heard)
        finally:
            torch.cuda.set_sync_debug_mode("default")


def environment() -> dict[str, Any]:
    """Return what the results were made with."""
    return {
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "date": dt.datetime.now(dt.timezone.utc).isoformat(timespec="seconds"),
        "python": platform.python_version(),
    }


def save(path: Path, content: dict[str, Any]) -> None:
    """Write JSON with one row per line, so that a later run's differences can be read."""
    rows = content["cases"]
    body = ",\n".join(f"    {json.dumps(name)}: {json.dumps(row)}" for name, row in rows.items())
    head = json.dumps({key: value for key, value in content.items() if key != "cases"}, indent=2)
    path.write_text(head.rstrip("}").rstrip() + ',\n  "cases": {\n' + body + "\n  }\n}\n", encoding="utf-8")


def choose(cases: Sequence[Case], limit: int | None, match: str | None) -> list[Case]:
    """Apply the command line's choice; a name that occurs twice is an error of the corpus's."""
    twice = [name for name, count in collections.Counter(case.name for case in cases).items() if count > 1]
    if twice:
        print(f"{len(twice)} names occur twice; only the first of each is run: {twice[:5]}")
    chosen = {case.name: case for case in reversed(cases)}
    return [
        case for case in cases if chosen[case.name] is case and (match is None or match in case.name)
    ][:limit]  # fmt: skip


def first_pass(cases: Sequence[Case], rows: dict[str, dict[str, Any]], repeats: int, keep: Any) -> None:
    """Fill in the truth, and what sync debug mode says."""
    for index, case in enumerate(cases):
        truth = physical.measure(case, repeats=repeats)
        row = rows[case.name] = {
            "family": case.family, "call": case.call, "expect": case.expect, "blocks": truth.blocks,
            "times_ms": list(truth.times_ms), "host_ms": round(truth.host_ms, 3), "sleep_ms": round(truth.sleep_ms, 1),
            "nest": [], "warned": None, "error": truth.error,
        }  # fmt: skip
        if not truth.error:
            try:
                with physical.guarded(case):
                    row["warned"] = warned(case)
            except physical.StickyError:
                raise
            except Exception as error:
                row["error"] = f"under sync debug mode: {physical.describe(error)}"
        if index % _SAVE_EVERY == _SAVE_EVERY - 1:
            keep()


def second_pass(cases: Sequence[Case], rows: dict[str, dict[str, Any]], hooks: Hooks) -> None:
    """Fill in which hooked calls lasted."""
    for case in cases:
        row = rows[case.name]
        if row["blocks"] is None and physical.SLEEPS:
            continue
        if row["error"]:
            continue
        try:
            with physical.guarded(case):
                physical.run_case(case)
                with hooks.watching(row["sleep_ms"]):
                    run = physical.run_case(case, row["sleep_ms"])
                row["nest"] = hooks.nest(run)
        except physical.StickyError:
            raise
        except Exception as error:
            row["error"] = f"with every op hooked: {physical.describe(error)}"


def tell(rows: dict[str, dict[str, Any]], repeats: int) -> None:
    """Print the most important results."""
    blocking = {name: row for name, row in rows.items() if row["blocks"]}
    skipped = [name for name, row in rows.items() if row["error"].startswith(physical.SKIPPED)]
    failed = {name: row["error"] for name, row in rows.items() if row["error"] and name not in skipped}
    decided = sum(row["blocks"] is not None for row in rows.values())
    print(
        f"{len(rows)} cases: {len(blocking)} wait, {decided - len(blocking)} do not, {len(rows) - decided} undecided "
        f"({len(skipped)} skipped, {len(failed)} with errors)"
    )
    print(f"sync debug mode missed {sum(row['warned'] is False for row in blocking.values())} of those that wait")
    print("\n== other than expected")
    for name, row in rows.items():
        if row["blocks"] is not None and row["blocks"] != row["expect"]:
            print(f"{'waits' if row['blocks'] else 'does not wait'}: {name}  {row['times_ms']} host {row['host_ms']}")
    print("\n== errors")
    for name, error in failed.items():
        print(f"{name}\n    {error}")
    print("\n== undecided by a hair (some runs waited, some did not)")
    for name, row in rows.items():
        if len(row["times_ms"]) > repeats:
            print(f"{name}  {row['times_ms']}")
    print("\n== innermost op that lasted: cases that wait, examples")
    table: dict[str, list[str]] = collections.defaultdict(list)
    for name, row in blocking.items():
        for op in dict.fromkeys(innermost(row["nest"])):
            table[op].append(name)
    for op, names in sorted(table.items(), key=lambda entry: -len(entry[1])):
        print(f"{len(names):5d}  {op:60s} {' | '.join(names[:2])}")
    print("\n== waits with no hooked op that lasted")
    for name, row in blocking.items():
        if not row["nest"]:
            print(name)
    print("\n== lasted, but the case does not wait")
    for name, row in rows.items():
        if row["nest"] and row["blocks"] is False:
            print(name, row["nest"])


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(description="find out what waits for the GPU, and inside which op")
    parser.add_argument("--out", type=Path, required=True, help="where the results go, as JSON")
    parser.add_argument("--limit", type=int, help="only that many cases")
    parser.add_argument("--repeats", type=int, default=2, help="runs of each case behind the sleep (default 2)")
    parser.add_argument("--match", help="only cases whose name holds this text")
    options = parser.parse_args()
    faulthandler.enable()
    warnings.filterwarnings("ignore")
    if DEVICE == "cpu":
        torch.set_num_threads(1)  # a hook holds the GIL, and torch's worker threads would wait for it inside one
    cases = choose(CASES, options.limit, options.match)
    rows: dict[str, dict[str, Any]] = {}
    results: dict[str, Any] = {**environment(), "device": DEVICE, "cases": rows}
    hooks = Hooks()
    began = time.perf_counter()
    code = 0

    def keep() -> None:
        save(options.out, results)

    try:
        first_pass(cases, rows, options.repeats, keep)
        keep()
        truths_s = time.perf_counter() - began
        hooks.put()
        hooked_s = time.perf_counter() - began
        second_pass(cases, rows, hooks)
        ended_s = time.perf_counter() - began
        print(
            f"truth {truths_s:.0f} s, {hooks.count} hooks {hooked_s - truths_s:.0f} s, nests {ended_s - hooked_s:.0f} s"
        )
    except physical.StickyError as error:
        print(f"STOPPED: {error}")
        code = 1
    finally:
        keep()
        if code == 0:
            hooks.take_off()
    if hooks.refused:
        print(f"{len(hooks.refused)} ops could not be hooked, such as {dict(list(hooks.refused.items())[:3])}")
    tell(rows, options.repeats)
    return code


if __name__ == "__main__":
    sys.exit(main())
