"""How far a long run is: a bar where stderr is a terminal, and a line a minute in the log where it is not."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from time import monotonic
from typing import Any

_logger = logging.getLogger(__name__)
_MINUTE = 60.0
_watch: ContextVar[Callable[[Progress, int], None] | None] = ContextVar("_watch", default=None)


class Progress(contextlib.AbstractContextManager["Progress"]):
    """Counts what is done, and shows it while its block lasts.

    ``total``: how much there is; ``unit``: of what, in the singular, ``B`` for bytes; ``name``: what is worked on;
    ``done``: what was done before; ``shown``: whether anything is to be seen.
    """

    def __init__(self, total: int, unit: str, *, name: str = "", done: int = 0, shown: bool = True) -> None:
        from huggingface_hub.utils import are_progress_bars_disabled, tqdm

        self.total, self.unit, self.name, self.done = total, unit, name, done
        hidden, scaled = None if shown else True, unit == "B"
        shape = {"unit": unit, "unit_scale": scaled, "desc": name or None}
        self._bar: Any = tqdm(total=total, initial=done, disable=hidden, **shape)
        self._told = shown and self._bar.disable and not are_progress_bars_disabled()
        self._first, self._began = done, monotonic()
        self._next = self._began + _MINUTE

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def update(self, count: int = 1) -> None:
        """So much more is done."""
        if (tell := _watch.get()) is not None:
            tell(self, count)
        self._bar.update(count)
        self.done += count
        if self._told and self.done < self.total and (now := monotonic()) >= self._next:
            self._next = now + _MINUTE
            _logger.info("%s", self._line(now - self._began))

    def note(self, text: str) -> None:
        """Say something beside the count."""
        self._bar.set_postfix_str(text)

    def over(self, items: Any) -> Iterator[Any]:
        """The items, each counted once the next is asked for."""
        with self:
            for item in items:
                yield item
                self.update()

    def _line(self, seconds: float) -> str:
        of = f"{self.done} of {self.total} {self.unit}s"
        if self.unit == "B":
            of = f"{self.done / 1e6:.0f} of {self.total / 1e6:.0f} MB"
        line = f"{self.name}: {of}" if self.name else of
        new = self.done - self._first
        if new > 0:
            line += f", about {duration(seconds / new * (self.total - self.done))} left"
        return line


@contextlib.contextmanager
def watching(tell: Callable[[Progress, int], None]) -> Iterator[None]:
    """While this lasts, ``tell`` is called with what is counted in this thread, and how much, shown or not."""
    before = _watch.set(tell)
    try:
        yield
    finally:
        _watch.reset(before)


def duration(seconds: float) -> str:
    """A time as one would say it: ``8 s``, ``3 min``, ``2 h 10 min``."""
    if seconds < 99.5:
        return f"{max(seconds, 0):.0f} s" if seconds >= 0.95 else f"{max(seconds, 0):.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
