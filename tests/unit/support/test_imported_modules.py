"""What is in a module, without importing it."""

from __future__ import annotations

import sys

from syncagent.support.modules import names_in
from syncagent.torchbridge.patches import exchange_everywhere


def test_a_module_that_the_program_has_not_used_yet_is_not_imported(lazy):
    assert names_in(lazy)["__name__"] == "lazy_module"
    exchange_everywhere("read", object(), object())


def test_what_is_no_module_has_no_names():
    assert names_in(sys) is vars(sys)
    assert [names_in(other) for other in (None, 1, int, object())] == [{}] * 4
