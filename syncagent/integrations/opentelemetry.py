"""``opentelemetry-instrument python train.py`` watches the script's host syncs, too.

Found through the entry point group ``opentelemetry_instrumentor``; needs the extra ``syncagent[opentelemetry]``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from opentelemetry.instrumentation.instrumentor import BaseInstrumentor  # type: ignore[attr-defined]

from syncagent.runtime import autostart

if TYPE_CHECKING:
    from collections.abc import Collection

__all__ = ["SyncAgentInstrumentor"]

_PROVIDERS = ("tracer_provider", "meter_provider")


class SyncAgentInstrumentor(BaseInstrumentor):  # type: ignore[misc]  # their module is not checked
    """Sends syncs and steps to the program's own tracer and meter provider: the global ones, or those given.

    ``instrument(tracer_provider=..., meter_provider=..., **settings)`` takes every setting of ``syncagent.watch`` as
    well.  The agent starts once torch has been imported.  ``OTEL_SDK_DISABLED=true`` and ``SYNCAGENT=0`` keep it off.
    """

    def instrumentation_dependencies(self) -> Collection[str]:
        """None: a requirement of torch would refuse its nightly builds, and without torch nothing starts."""
        return ()

    def _instrument(self, **kwargs: Any) -> None:
        import os

        from syncagent.telemetry.otel_env import is_disabled

        kwargs.pop("auto_instrumentation_version", None)
        if not is_disabled(os.environ):
            providers = {name: kwargs.pop(name) for name in _PROVIDERS if name in kwargs}
            autostart.instrument(providers, kwargs)

    def _uninstrument(self, **kwargs: Any) -> None:  # noqa: ARG002 - the interface
        autostart.uninstrument()
