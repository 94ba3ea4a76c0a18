"""The baseline: sites of an earlier report, whose syncs are allowed."""

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
    """Knows the sites of a report, by the same key as ``syncagent check``.

    A site whose statement has changed a little is known as well, unless the old statement is still in the function:
    then the similar one is new.  Each site of the report accounts for one such change.
    """

    def __init__(self, path: str) -> None:
        """Read the report.  Raises :class:`ConfigError` if it is not one."""
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
        """Return whether the report has this site; ``points`` are the user's, the library's and the forward line."""
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
        """Return whether the statement is no longer in this function; ``False`` without the source."""
        statements = statements_of(code)
        if not statements:
            return False
        texts = {normal(statement.text) for statement in statements}
        if not self._is_whole:  # the report has single lines
            texts |= {normal(line.strip()) for statement in statements for line in statement.text.splitlines()}
        return text not in texts
