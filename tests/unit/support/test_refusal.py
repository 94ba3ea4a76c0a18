from __future__ import annotations

PROGRAM = """
import atexit, sys
print("before", end="")
{first}
try:
    from syncagent.support.refusal import refuse_to_start
    refuse_to_start("the baseline is not there.")
except BaseException:
    print("swallowed")
finally:
    print("went on")
"""


def test_refusal_ends_the_process_with_2_and_one_sentence_whatever_the_program_catches(python):
    ended = python("-c", PROGRAM.format(first=""))
    assert ended.returncode == 2
    assert ended.stdout == "before"
    assert ended.stderr == "syncagent: the baseline is not there. The process ends here, with exit code 2.\n"


def test_refusal_needs_no_stderr(python):
    for first in ("sys.stderr.close()", "sys.stderr = None", "sys.stdout = sys.stderr = None"):
        assert python("-c", PROGRAM.format(first=first)).returncode == 2, first
