"""Callbacks around the import of one module."""

from __future__ import annotations

# Every interpreter that is to be watched imports this at its start: nothing heavy here, typing included.
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    import importlib.machinery
    from collections.abc import Callable, Sequence
    from types import ModuleType


class ImportHook:
    """A finder that runs callbacks right before and after one module is imported, and then removes itself."""

    def __init__(
        self,
        name: str,
        then: Callable[[], None] = lambda: None,
        *,
        before: Callable[[], None] = lambda: None,
        cannot: Callable[[Exception], None] = lambda _error: None,
    ) -> None:
        """``cannot`` is called with an error where the module's loader does not let itself be wrapped."""
        self._name = name
        self._then = then
        self._before = before
        self._cannot = cannot

    def install(self) -> None:
        """Ask this finder first from now on; where the module is there already, make both calls at once."""
        if self._name in sys.modules:
            self._before()
            self._then()
        else:
            sys.meta_path.insert(0, self)

    def remove(self) -> None:
        """Take it out again, unless it has removed itself."""
        if self in sys.meta_path:
            sys.meta_path.remove(self)

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != self._name:
            return None
        # It stays until the module has run, since libraries ask importlib.util.find_spec whether there is a torch.
        # The finders before it have been asked.  There may be two hooks, which must not ask each other.
        place = sys.meta_path.index(self) + 1 if self in sys.meta_path else 0
        others = [finder for finder in sys.meta_path[place:] if hasattr(finder, "find_spec")]
        spec = next(filter(None, (finder.find_spec(name, path, target) for finder in others)), None)
        load = getattr(spec and spec.loader, "exec_module", None)
        if spec is None or load is None:
            return spec

        def exec_module(module: ModuleType) -> None:
            if self in sys.meta_path:
                self._before()
            load(module)
            if self in sys.meta_path:  # another thread may have imported it meanwhile
                sys.meta_path.remove(self)
                self._then()

        try:
            spec.loader.exec_module = exec_module  # type: ignore[union-attr, method-assign]  # else: below
        except AttributeError:
            self._cannot(TypeError("torch's loader takes no attributes"))
        return spec
