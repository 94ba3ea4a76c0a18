"""A baseline: the sites of an earlier report, which may pass."""

from __future__ import annotations

from typing import TYPE_CHECKING

from syncagent.attribution.statements import statements_of
from syncagent.errors import ConfigError, SyncAgentError
from syncagent.sites import SiteKey, home_of_process, is_a_little_changed, key_of, naming, normal

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import CodeType

    from syncagent.attribution.callsite import Point
    from syncagent.events import CallSite, SyncKind
    from syncagent.sites import Frame

__all__ = ["Baseline"]


class Baseline:
    """Knows the sites of a report, by the key that ``syncagent check`` goes by.

    One whose statement has changed a little is known as well, if the statement that the report has is no longer in the
    function: beside it, a similar one would be new.  Each site of the report stands for one such change.
    """

    def __init__(self, path: str) -> None:
        """Read the report; raises :class:`ConfigError` where that is none."""
        from syncagent.report import files

        try:
            report = files.load_merged([path])
        except SyncAgentError as error:
            raise ConfigError(
                f"syncagent: setting baseline is {path!r}, but it must be a report that syncagent saved as JSON "
                f"({error})."
            ) from None
        there, here = report.run.home, home_of_process()
        named, self._named = naming(there, here)
        self._is_whole = bool(there.folder and here.folder)
        self._keys = {site.key(named) for site in report.sites}
        self._by_frame: dict[Frame, list[SiteKey]] = {}
        for key in dict.fromkeys(site.key(named) for site in report.sites):
            self._by_frame.setdefault(key.frame, []).append(key)
        self._stands_for: dict[SiteKey, SiteKey] = {}

    def knows(
        self, kind: SyncKind, points: Sequence[Point | None], resolve: Callable[[Point | None], CallSite | None]
    ) -> bool:
        """Is this one of the report's sites?  ``points`` are its user's, library and forward line."""
        user, library, forward = map(resolve, points)
        key = key_of(kind, user, library, forward, self._named)
        if key in self._keys:
            return True
        for known in self._by_frame.get(key.frame, ()):
            if self._stands_for.get(known, key) != key or not is_a_little_changed(known, key):
                continue
            changed = [
                (text, point) for text, now, point in zip(known.texts, key.texts, points, strict=True) if text != now
            ]
            if all(point is not None and self._is_gone(text, point[0]) for text, point in changed):
                return self._stands_for.setdefault(known, key) == key
        return False

    def _is_gone(self, text: str, code: CodeType) -> bool:
        """Is the statement no longer in this function?  Without the source nobody can say."""
        statements = statements_of(code)
        if not statements:
            return False
        texts = {normal(statement.text) for statement in statements}
        if not self._is_whole:  # the report has single lines
            texts |= {normal(line.strip()) for statement in statements for line in statement.text.splitlines()}
        return text not in texts
