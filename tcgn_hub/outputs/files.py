"""Writing files so that a reader never sees half of one."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from tcgn_hub.errors import OutputError

__all__ = ["write_text"]


def write_text(path: str | Path, text: str) -> None:
    """Write a text file under a temporary name, then rename it.

    Raises:
        OutputError: The folder is missing or not writable, or the disk is full; nothing is left behind.
    """
    path = Path(path)
    part = None
    try:
        with tempfile.NamedTemporaryFile(
            "w", dir=path.parent, prefix=path.name, suffix=".part", delete=False, encoding="utf-8", newline=""
        ) as handle:
            part = handle.name
            handle.write(text)
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(part, 0o666 & ~umask)
        os.replace(part, path)
    except OSError as err:
        if part is not None and os.path.exists(part):
            os.unlink(part)
        raise OutputError(f"{path} cannot be written ({err.strerror or err}).") from err
