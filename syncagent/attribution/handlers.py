"""Decides whether the handler of a mode or a tensor subclass only passes on the call that it was given.

A program's own ``__torch_function__`` or ``__torch_dispatch__`` stands between the calling line and the op.  Where such
a frame calls the function that it was given, or hands it to another function, the line to report is the caller's; where
it does work of its own, it is the handler's.  The bytecode shows which, without the source.
"""

from __future__ import annotations

import dis
import itertools
from collections.abc import Sequence
from types import CodeType

_HANDLERS = frozenset({"__torch_function__", "__torch_dispatch__"})


def is_handler(code: CodeType) -> bool:
    return code.co_name in _HANDLERS and code.co_argcount >= 2


def passes_on(code: CodeType, offset: int) -> bool:
    """Return whether the call at this instruction calls the handler's ``func``, or passes it as an argument.

    ``func`` is the second argument, as the closure is of an optimizer's ``step``.
    """
    function = code.co_varnames[1]
    instructions = [instruction for instruction in dis.get_instructions(code) if instruction.opname != "PRECALL"]
    return any(
        offset in _consumer(instructions[index + 1 :], above)
        for index, above in enumerate(_loads(instruction, function) for instruction in instructions)
        if above
    )


def _loads(instruction: dis.Instruction, name: str) -> int:
    """Return how deep below the top of the stack the instruction puts a variable; 0 if it does not."""
    if not instruction.opname.startswith("LOAD_"):
        return 0
    pushed = instruction.argval if isinstance(instruction.argval, tuple) else (instruction.argval,)  # 3.13 pushes pairs
    return len(pushed) - pushed.index(name) if name in pushed else 0


def _consumer(instructions: Sequence[dis.Instruction], depth: int) -> range:
    """Follow the stack to the call that takes the value ``depth`` deep, and return the range of its bytes."""
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
            # In Python 3.11 the current instruction may be the end of a call instead of its beginning.
            return range(instruction.offset, following.offset if following else instruction.offset + 1)
        if depth < 1:
            break
    return range(0)


_JUMPS = frozenset((*dis.hasjrel, *dis.hasjabs))
_CALL_IN_TWO = "PRECALL" in dis.opmap
"""In Python 3.11 another instruction accounts for the arguments of a call."""
