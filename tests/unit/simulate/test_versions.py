"""A torch that lacks a name: the simulated device starts all the same, and says what is lost.

Names are taken away in forked children of one process, which has imported torch and nothing of ours.
"""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

from syncagent import simulate
from syncagent.simulate.requirements import OPTIONAL

SOURCES = sorted(Path(simulate.__file__).parent.glob("*.py"))

TORCHS_OWN = {
    "autograd.Variable._execution_engine", "jit._builtins._register_builtin", "serialization._package_registry",
}  # fmt: skip
"""Without the first two torch has no backward pass and cannot look any op up; the last is looked up when the device is
taken out again."""

PROGRAM = """
import json, os, sys, traceback
import torch, torch.cuda.graphs, torch.jit, torch.utils._device, torch.utils._triton
import torch.distributed.tensor  # torch does so itself at the first call on a tensor of another class

def take_away(path):
    if path.startswith("aten::"):
        gone.add(path.removeprefix("aten::"))
        vars(torch.ops.aten).pop(path.removeprefix("aten::"), None)
        return
    holder, _, name = path.rpartition(".")
    place, path = torch, "torch"
    for part in holder.split(".") if holder else ():
        path += "." + part
        place = sys.modules[path] if path in sys.modules else getattr(place, part)  # torch hides modules
    if isinstance(place, type) and name not in vars(place):  # inherited from a class of C, which nothing can change
        setattr(place, name, None)
    else:
        delattr(place, name)

gone = set()
find = type(torch.ops.aten).__getattr__
def look(namespace, name):
    if namespace is torch.ops.aten and name in gone:
        raise AttributeError(name)
    return find(namespace, name)
type(torch.ops.aten).__getattr__ = look

def attempt(names):
    for name in names:
        take_away(name)
    from syncagent import simulate
    try:
        simulate.install()
    except simulate.SimulationError as error:
        return {"refused": str(error)}
    weight = torch.ones(3, 1, device="cuda", requires_grad=True)
    (torch.ones(2, 3, device="cuda") @ weight).sum().backward()
    return {"gradient": weight.grad.cpu().view(-1).tolist(), "missing": simulate.missing()}

for names in json.load(sys.stdin):
    read, write = os.pipe()
    if not os.fork():
        try:
            said = attempt(names)
        except BaseException:
            said = {"failed": traceback.format_exc()}
        os.write(write, json.dumps(said).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        print(pipe.read(), flush=True)
    os.wait()
"""


def without(python, *cases):
    """What comes of the device in a torch that lacks these names, one case after the other."""
    done = python("-c", PROGRAM, given=json.dumps(cases))
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def ops_named_in_the_sources():
    """Every op of aten that the simulated device names, but for those that the program above needs itself."""
    named = {name for path in SOURCES for name in re.findall(r"\baten\.(\w+)\.?", path.read_text(encoding="utf-8"))}
    needed = {
        "as_strided",
        "as_strided_",
        "copy_",
        "_to_copy",
        "empty_like",
        "detach",
        "alias",
        "ones_like",
        "resize_",
        "mm",
        "sum",
        "t",
        "transpose",
        "mul",
        "expand",
    }
    return sorted(named - needed - {"ops"})


def ops_with_a_handler():
    """Those that are looked up as these modules are imported, to register a handler of its own for each."""
    files = [Path(simulate.__file__).with_name(f"{name}.py") for name in ("special", "copies", "nested")]
    special = ast.Module([ast.parse(file.read_text(encoding="utf-8")) for file in files], [])
    functions = [node for node in ast.walk(special) if isinstance(node, (ast.FunctionDef, ast.Lambda))]
    later = {id(node) for function in functions for part in as_list(function.body) for node in ast.walk(part)}
    return {
        node.attr
        for node in ast.walk(special)
        if isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "aten" and id(node) not in later
    }


def as_list(body):
    return body if isinstance(body, list) else [body]


def test_a_missing_name_disables_only_what_needs_it_and_is_reported(python):
    """The device starts without any of those that are optional, the ops that it treats specially, and functions.

    Only without what it cannot do without there is none, and the error names it.
    """
    ops = ops_named_in_the_sources()
    assert "cholesky" in ops
    functions = ["range", "nested.as_nested_tensor", "cuda.mem_get_info", "fft.rfftfreq"]
    optional = {path: lost for path, lost in OPTIONAL.items() if path not in TORCHS_OWN}
    *started, whole, refused = without(
        python, list(optional), [f"aten::{name}" for name in ops], functions, [], ["nn.Module._apply"]
    )
    for said in (*started, whole):
        assert said.get("gradient") == [2.0, 2.0, 2.0], said
    names, of_ops, of_functions = (" ".join(said["missing"]) for said in started)
    assert [path for path, lost in optional.items() if f"torch.{path}: {lost}" not in names] == []
    handled = {name for name in ops_with_a_handler() if name in ops}  # the others are looked up when they are called
    assert [name for name in sorted(handled) if not re.search(rf"aten::{name}[:.]", of_ops)] == []
    assert {"cholesky", "native_dropout", "equal"} <= handled
    assert [path for path in functions if f"torch.{path}: " not in of_functions] == []
    # Of torch 2.10 to 2.15 nothing is missing but this op, which left with 2.14.
    assert [sentence for sentence in whole["missing"] if "aten::cholesky:" not in sentence] == []
    assert re.fullmatch(
        r"the simulated device does not work with torch \S+: it lacks torch\.nn\.Module\._apply \(Module\.to\)",
        refused.get("refused", str(refused)),
    )
