"""What the runs of one process share: cases, prepared windows, the weights of the base. Each is made once.

Nothing in here belongs to a run: tensors are read, never written.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")

MOST = {"cases": 10_000, "volumes": 10_000, "images": 4, "windows": 2, "base": 1, "donor": 1, "unused": 1_000}
"""Things of a kind that stay; the one that was not asked for longest goes first.

Cases are only names and hashes, and volumes lie in files that are mapped into memory: nearly free. Windows on a GPU are
copies. Where more federations than two take turns, as with one site left out after the other, they are copied again for
every run, out of volumes that are mapped already: a second or so for some gigabytes. Of a method it is known after its
first run which of its tensors are unused.
"""


class Resident:
    """A store of things that are made once.

    Example:
        >>> resident = Resident()
        >>> resident.once("cases", "a", lambda: [1]) is resident.once("cases", "a", lambda: [2])
        True
    """

    def __init__(self) -> None:
        self._kinds: dict[str, OrderedDict[str, Any]] = {}

    def once(self, kind: str, key: object, make: Callable[[], T]) -> T:
        """What was made for a key before, or what ``make`` gives now; keys are equal where they look equal."""
        kept = self._kinds.setdefault(kind, OrderedDict())
        name = repr(key)
        if name not in kept:
            while len(kept) >= MOST[kind]:
                kept.popitem(last=False)  # before the next one is made: there may be room for so many only
            kept[name] = make()
        kept.move_to_end(name)
        found: T = kept[name]
        return found

    def found(self, kind: str, key: object) -> Any:
        """What was made for a key before; None where nothing was, or it has gone."""
        kept = self._kinds.get(kind)
        return None if kept is None else kept.get(repr(key))

    def clear(self) -> None:
        """Lets go of everything."""
        self._kinds.clear()
