"""Files of weights on this machine: where downloads are kept, and whether a file is what the manifest says."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tcgn_hub.errors import WeightsError
from tcgn_hub.weights.manifest import WeightFile

__all__ = ["cached_path", "clear_cache", "downloads_folder", "matches", "sha256_of", "writing"]

# sha256 of files hashed in this process, each with the size, mtime and inode it then had
_hashed: dict[str, tuple[tuple[int, int, int], str]] = {}


def downloads_folder(cache_dir: str | Path | None = None) -> Path:
    """Where downloads are kept: below ``cache_dir``, or among the assets of ``HF_HOME``."""
    from huggingface_hub.constants import HF_ASSETS_CACHE

    return Path(cache_dir) / "tcgn_hub" if cache_dir else Path(HF_ASSETS_CACHE) / "tcgn_hub" / "downloads"


def cached_path(file: WeightFile, cache_dir: str | Path | None = None) -> Path:
    """Where a file is kept once it is downloaded, by its content: neither tag nor repository can mistake it."""
    return downloads_folder(cache_dir) / file.sha256 / file.name


def sha256_of(path: Path, *, force: bool = False) -> str:
    """Hexadecimal sha256 of a file, computed once in a process while its size, mtime and inode stay the same.

    Args:
        path: The file.
        force: Compute it again whatever is remembered.
    """
    key, before = os.path.realpath(path), _signature(path)
    if not force and key in _hashed and _hashed[key][0] == before:
        return _hashed[key][1]
    digest = hashlib.sha256()
    with open(path, "rb") as handle:
        while block := handle.read(1 << 20):
            digest.update(block)
    if _signature(path) == before:
        _hashed[key] = before, digest.hexdigest()
    return digest.hexdigest()


def _signature(path: Path) -> tuple[int, int, int]:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns, stat.st_ino


def matches(path: Path, file: WeightFile, *, force: bool = False) -> bool:
    """Whether a file is there and has the size and sha256 of the manifest.

    Raises:
        WeightsError: It is there, but cannot be read.
    """
    try:
        return path.stat().st_size == file.size and sha256_of(path, force=force) == file.sha256
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as err:
        raise WeightsError(
            f"{path} cannot be read ({err.strerror or err}); make it readable, or give another folder with HF_HOME or"
            " cache_dir."
        ) from err


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn what the file system refuses below ``folder`` into one sentence.

    Raises:
        WeightsError: The folder cannot be written, or the disk is full.
    """
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as err:
        reason = getattr(err, "strerror", None) or err
        raise WeightsError(
            f"{folder} cannot be written ({reason}); make room or give another folder with HF_HOME or cache_dir."
        ) from err


def clear_cache(sha256: str | None = None, *, cache_dir: str | Path | None = None) -> int:
    """Delete downloads, parts of downloads included; returns the bytes freed.

    Args:
        sha256: Of the only file to delete.
        cache_dir: As for `downloads_folder`.

    Raises:
        WeightsError: The folder cannot be written.
    """
    folder = downloads_folder(cache_dir)
    freed = 0
    if not folder.is_dir():
        return freed
    with writing(folder):
        for child in folder.iterdir():
            if child.is_dir() and (sha256 is None or child.name == sha256):
                freed += sum(path.stat().st_size for path in child.rglob("*") if path.is_file())
                shutil.rmtree(child)
    return freed
