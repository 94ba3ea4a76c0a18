"""OpenTelemetry's instrumentation: ``opentelemetry-instrument python train.py`` also watches the script's host syncs.

Needs the extra ``syncagent[opentelemetry]``.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from typing import Any

from opentelemetry.instrumentation.instrumentor import BaseInstrumentor  # type: ignore[attr-defined]  # untyped

from syncagent.integrations.base import Integration
from syncagent.telemetry.otel_env import is_disabled

_PROVIDERS = ("tracer_provider", "meter_provider")


class SyncAgentInstrumentor(Integration, BaseInstrumentor):  # type: ignore[misc]  # their module is not checked
    """Sends syncs and steps to the program's own tracer and meter provider: the global ones, or those given.

    ``instrument(tracer_provider=..., meter_provider=..., **settings)`` takes every setting of ``syncagent.watch`` as
    well.  The agent starts once torch has been imported.  ``OTEL_SDK_DISABLED=true`` and ``SYNCAGENT=0`` keep it off.
    """

    entry_point_group = "opentelemetry_instrumentor"

    def instrumentation_dependencies(self) -> Collection[str]:
        """Return none: a requirement of torch would refuse its nightly builds, and without torch nothing starts."""
        return ()

    def _instrument(self, **kwargs: Any) -> None:
        kwargs.pop("auto_instrumentation_version", None)
        if not is_disabled(os.environ):
            providers = {name: kwargs.pop(name) for name in _PROVIDERS if name in kwargs}
            self.watch_process(kwargs, providers)

    def _uninstrument(self, **kwargs: Any) -> None:  # noqa: ARG002 - the interface
        self.unwatch_process()
