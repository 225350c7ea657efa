"""Names, options and tables as plain text."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from contextvars import ContextVar

on_command_line: ContextVar[bool] = ContextVar("on_command_line", default=False)
"""Whether who reads a message has typed a command, and not a call from Python."""


def option(name: str, value: object = "") -> str:
    """An option as whoever reads the message would give it: ``--min-tissue 0`` or ``min_tissue=0``."""
    if not on_command_line.get():
        return f"{name}={value}" if value != "" else name
    return f"--{name.replace('_', '-')}" + ("" if value in ("", True) else f" {value}")


def some(names: Iterable[str], most: int = 5) -> str:
    """The first names of what may be a long list, and how many more there are."""
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def aligned(rows: Sequence[Sequence[str]], *, left: Collection[int] = (0,)) -> str:
    """Rows of cells as lines, each column as wide as its longest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "".join(
        "  ".join(
            cell.ljust(width) if i in left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        + "\n"
        for row in rows
    )
