"""Names, options and tables as plain text."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from contextvars import ContextVar

on_command_line: ContextVar[bool] = ContextVar("on_command_line", default=False)
"""Whether who reads a message has typed a command, and not a call from Python."""


def option(name: str, value: object = "") -> str:
    """An option as whoever reads the message would give it: ``--min-tissue 0`` or ``min_tissue=0``; lists, too."""
    if not on_command_line.get():
        return f"{name}={value!r}" if value != "" else name
    values = map(str, value) if isinstance(value, list) else [] if value in ("", True) else [str(value)]
    return " ".join([f"--{name.replace('_', '-')}", *values])


def printable(name: object) -> str:
    """A name of a file in characters that every file can hold: bytes that are no UTF-8 are escaped."""
    return str(name).encode("utf-8", "backslashreplace").decode()


def counted(number: int, one: str, more: str = "") -> str:
    """A number of things in words: 1 tile, 2 tiles."""
    return f"{number} {one if number == 1 else more or f'{one}s'}"


def some(names: Iterable[str], most: int = 5) -> str:
    """The first names of what may be a long list, and how many more there are."""
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def one_line(text: str, *, most: int | None = None) -> str:
    """A text in which line breaks and other signs that do not print are escaped; if too long, beginning and end."""
    line = "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in text.rstrip())
    return line if most is None or len(line) <= most else f"{line[: most * 2 // 3]} ... {line[-most // 4 :]}"


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
