"""Whether a mode's or a tensor subclass's handler is just passing on the call that it was given.

``__torch_function__`` and ``__torch_dispatch__`` of a program's own stand between the line that called and the op.
Where such a frame calls the function that it was given, or gives it to another, the line that matters is the caller's;
where it does work of its own, it is the handler's.  The bytecode tells which, without the source.
"""

from __future__ import annotations

import dis
import itertools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import CodeType

__all__ = ["is_handler", "passes_on"]

_HANDLERS = frozenset({"__torch_function__", "__torch_dispatch__"})


def is_handler(code: CodeType) -> bool:
    return code.co_name in _HANDLERS and code.co_argcount >= 2


def passes_on(code: CodeType, offset: int) -> bool:
    """Is the handler's ``func`` part of the call at this instruction, as what is called or as an argument?"""
    function = code.co_varnames[1]
    instructions = [instruction for instruction in dis.get_instructions(code) if instruction.opname != "PRECALL"]
    return any(
        offset in _consumer(instructions[index + 1 :], above)
        for index, above in enumerate(_loads(instruction, function) for instruction in instructions)
        if above
    )


def _loads(instruction: dis.Instruction, name: str) -> int:
    """How deep under the top of the stack the instruction puts a variable; 0 where it does not."""
    if not instruction.opname.startswith("LOAD_"):
        return 0
    pushed = instruction.argval if isinstance(instruction.argval, tuple) else (instruction.argval,)  # 3.13 pushes pairs
    return len(pushed) - pushed.index(name) if name in pushed else 0


def _consumer(instructions: Sequence[dis.Instruction], depth: int) -> range:
    """Follow the stack in a straight line to the call that takes a value ``depth`` deep, and return its bytes."""
    at_label: dict[int, int] = {}
    for instruction, following in itertools.zip_longest(instructions, instructions[1:]):
        depth = at_label.get(instruction.offset, depth)
        is_call = instruction.opname.startswith("CALL")
        try:
            if instruction.opcode in _JUMPS:
                at_label[instruction.argval] = depth + dis.stack_effect(instruction.opcode, instruction.arg, jump=True)
            depth += dis.stack_effect(instruction.opcode, instruction.arg, jump=False)
        except ValueError:
            break
        if is_call and _CALL_IN_TWO:
            depth -= instruction.arg or 0 if instruction.opname == "CALL" else 0
        if depth <= 1 and is_call:
            # Python 3.11 may say that it is at the end of a call, not at its beginning.
            return range(instruction.offset, following.offset if following else instruction.offset + 1)
        if depth < 1:
            break
    return range(0)


_JUMPS = frozenset((*dis.hasjrel, *dis.hasjabs))
_CALL_IN_TWO = "PRECALL" in dis.opmap
"""In Python 3.11 another instruction accounts for the arguments of a call."""
