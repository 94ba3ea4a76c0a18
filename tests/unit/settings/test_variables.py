"""A variable that means nothing is reported with the one that was probably meant."""

from __future__ import annotations

from dataclasses import fields

import pytest

from syncagent.settings import schema, sources
from syncagent.settings.sources import unknown_variables

pytestmark = pytest.mark.usefixtures("no_settings")

NAMES = [setting.name for setting in fields(schema.Settings) if "parse" in setting.metadata]


@pytest.mark.parametrize(
    ("variable", "meant"),
    [
        ("SYNCAGENT_POLCY", "SYNCAGENT_POLICY"),
        ("SYNCAGENT_policy", "SYNCAGENT_POLICY"),
        ("SYNCAGENTPOLICY", "SYNCAGENT_POLICY"),
        ("SYNCAGENT_ALLOWED_PACKS", "SYNCAGENT_ALLOW_PACKS"),
        ("SYNCAGENT_BASE_LINE", "SYNCAGENT_BASELINE"),
        ("SYNCAGENT_LOGLEVEL", "SYNCAGENT_LOG_LEVEL"),
    ],
)
def test_the_nearest_name_is_given(variable, meant):
    """And never the value, which may be a secret."""
    [sentence] = sources.load(environment={variable: "raise"}).warnings
    assert sentence == f"the variable {variable} is not a setting of syncagent; did you mean {meant}?"


def test_a_name_like_no_other_is_reported_without_a_guess():
    assert unknown_variables({"SYNCAGENT_COLOUR_SCHEME": "x"}) == [
        "the variable SYNCAGENT_COLOUR_SCHEME is not a setting of syncagent"
    ]


def test_settings_and_the_other_variables_that_are_read_are_known():
    known = [
        "SYNCAGENT",
        "SYNCAGENT_LOG_LEVEL",
        "SYNCAGENT_LOG_FORMAT",
        *(f"SYNCAGENT_{name.upper()}" for name in NAMES),
    ]
    assert unknown_variables(dict.fromkeys(known, "1") | {"SYNC": "1", "MY_SYNCAGENT_X": "1"}) == []
