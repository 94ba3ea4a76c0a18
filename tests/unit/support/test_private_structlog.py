"""structlog for the agent alone."""

from __future__ import annotations

SCRIPT = """\
import random, sys
random.seed(0)
from syncagent.support.log import get_logger
get_logger().warning("said", value=1)
try:
    1 / 0
except ZeroDivisionError:
    get_logger().exception("failed")
print(random.random() == random.Random(0).random())
print([name for name in sys.modules if name.partition(".")[0] in ("structlog", "rich")])
import structlog
print(structlog.dev.rich is not None)
from syncagent.support.log import private_structlog as load
print(load() is structlog)
"""


def test_the_agents_structlog_draws_no_random_number_and_the_programs_is_another(python):
    """rich, which structlog loads where it can, draws one; the program's structlog has rich as usual."""
    done = python("-c", SCRIPT)
    assert done.stdout.splitlines() == ["True", "[]", "True", "False"]
    assert "said value=1" in done.stderr
    assert "ZeroDivisionError" in done.stderr


def test_a_structlog_that_the_program_has_loaded_is_taken():
    import structlog

    from syncagent.support.log import private_structlog

    private_structlog.cache_clear()
    try:
        assert private_structlog() is structlog
    finally:
        private_structlog.cache_clear()


BESIDE_IMPORTS = """\
import sys, threading, types
from syncagent.support.log import private_structlog as load

def import_and_forget():
    n = 0
    while not is_over:
        n += 1
        sys.modules[f"other{n}"] = types.ModuleType("other")
        sys.modules.pop(f"other{n - 50}", None)

is_over = False
for name in range(20_000):  # the more there are, the longer they take to be gone through
    sys.modules[f"many{name}"] = types.ModuleType("many")
sys.setswitchinterval(1e-6)
thread = threading.Thread(target=import_and_forget)
thread.start()
try:
    for _ in range(5):
        load.cache_clear()
        load()
finally:
    is_over = True
    thread.join()
print("structlog" in sys.modules)
"""


def test_other_threads_may_import_while_it_is_loaded(python):
    """As at the end of a script: the main thread loads the report while the agent's logs its first line."""
    done = python("-c", BESIDE_IMPORTS)
    assert (done.returncode, done.stdout) == (0, "False\n"), done.stderr
