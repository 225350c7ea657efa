"""Writing files so that a reader never sees half of one."""

from __future__ import annotations

import io
import json
import os
import secrets
import shutil
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tcgn_hub.errors import OutputError


def make_folder(folder: Path) -> None:
    """Make a folder that may be there already."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise OutputError(f"{folder} cannot be made a folder ({err.strerror or err}).") from err


def data_files(folder: Path, *, endings: Collection[str] | None = None) -> list[Path]:
    """The files of a folder by name, of these endings if any are given, in lower case.

    Names that begin with a dot are no data: macOS leaves ``._slide.tif`` beside ``slide.tif``.
    """
    ends = None if endings is None else tuple(endings)
    found = sorted(path for path in folder.iterdir() if not path.name.startswith(".") and path.is_file())
    return [path for path in found if ends is None or path.name.lower().endswith(ends)]


def remove(path: Path) -> None:
    """Remove a file, or a folder and all that is in it, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def writing(path: str | Path) -> Iterator[Path]:
    """A temporary file beside ``path`` that takes its name when the block ends without an error.

    After an error nothing of it is left, and a file that had the name is as it was.
    """
    path = Path(path)
    part = path.parent / f"{path.name}.{secrets.token_hex(8)}.part"
    try:
        # made as any file is, so that the umask holds: it can only be asked for by setting it, for all threads
        part.touch(exist_ok=False)
        yield part
        os.replace(part, path)
    except BaseException as err:
        with suppress(OSError):
            part.unlink()
        if isinstance(err, OSError) and not isinstance(err, OutputError):
            raise OutputError(f"{path} cannot be written ({err.strerror or err}).") from err
        raise


@contextmanager
def writing_folder(path: str | Path) -> Iterator[Path]:
    """The same for a folder, which the block makes; one that had the name is gone once the new one is whole."""
    path = Path(path)
    part, before = (path.parent / f"{path.name}.{secrets.token_hex(8)}.part" for _ in range(2))
    try:
        yield part
        if path.exists():
            os.rename(path, before)
        os.rename(part, path)
    except BaseException as err:
        with suppress(OSError):
            os.rename(before, path)
        shutil.rmtree(part, ignore_errors=True)
        if isinstance(err, OSError) and not isinstance(err, OutputError):
            raise OutputError(f"{path} cannot be written ({err.strerror or err}).") from err
        raise
    shutil.rmtree(before, ignore_errors=True)


def read_json(path: Path) -> Any:
    """What a JSON file holds; a ValueError also where it is nested more deeply than Python follows."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError as err:
        raise ValueError("it is nested too deeply") from err


def write_text(path: str | Path, text: str | Iterable[str]) -> None:
    """Write a text file under a temporary name, then rename it."""
    with writing(path) as part, part.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        file.writelines([text] if isinstance(text, str) else text)


def write_npz(path: str | Path, arrays: dict[str, Any]) -> None:
    """Write arrays as .npz that needs no pickle, under a temporary name, then rename it."""
    import numpy as np

    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    write_bytes(path, content.getvalue())


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write a file under a temporary name, then rename it."""
    with writing(path) as part:
        part.write_bytes(content)
