"""Writing files so that a reader never sees half of one."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tcgn_hub.errors import OutputError

__all__ = ["write_bytes", "write_text", "writing"]


@contextmanager
def writing(path: str | Path) -> Iterator[Path]:
    """A temporary file beside ``path`` that takes its name when the block ends without an error.

    Raises:
        OutputError: The folder is missing or not writable, or the disk is full. Whatever the error, nothing is left
            behind, and a file that had the name before is as it was.
    """
    path = Path(path)
    part = None
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
        os.close(handle)
        part = Path(name)
        yield part
        umask = os.umask(0)
        os.umask(umask)
        part.chmod(0o666 & ~umask)
        os.replace(part, path)
    except BaseException as err:
        if part is not None:
            part.unlink(missing_ok=True)
        if isinstance(err, OSError):
            raise OutputError(f"{path} cannot be written ({err.strerror or err}).") from err
        raise


def write_text(path: str | Path, text: str) -> None:
    """Write a text file under a temporary name, then rename it.

    Raises:
        OutputError: The folder is missing or not writable, or the disk is full; nothing is left behind.
    """
    write_bytes(path, text.encode())


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write a file under a temporary name, then rename it.

    Raises:
        OutputError: The folder is missing or not writable, or the disk is full; nothing is left behind.
    """
    with writing(path) as part:
        part.write_bytes(content)
