"""Claims: of several processes that share a folder, one at a time does what has a name.

A claim is a file that is created exclusively, which a network file system promises too. Its generation is part of its
name: to take over a claim whose process is gone is to create the next generation, so that of those who try one
succeeds, and nothing is deleted that another may have just created.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from time import monotonic, sleep, time
from typing import Any, NamedTuple

from tcgn_hub.errors import OutputError
from tcgn_hub.files import make_folder

BEAT = 15.0
"""Seconds after which a claim is touched again."""

STALE = 180.0
"""Seconds without a touch after which a claim of another machine is taken for one whose process is gone; network file
systems show a touch up to a minute late."""


@dataclass(frozen=True)
class Claim:
    """What this process holds until it is released."""

    name: str
    path: Path
    token: str
    generation: int = 0


class Claims:
    """The claims of a folder, and those this process holds of them.

    ``folder``: where they lie; it is made. ``beat`` and ``stale``: see `BEAT` and `STALE`.
    """

    def __init__(self, folder: Path, *, beat: float = BEAT, stale: float = STALE) -> None:
        self.folder, self._beat, self._stale = folder, beat, stale
        self._seen: dict[Path, tuple[int, float]] = {}
        self._alive: set[Path] = set()
        self._held: dict[str, Claim] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        make_folder(folder)

    def __enter__(self) -> Claims:
        threading.Thread(target=self._keep_alive, name="tcgn-claims", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for claim in list(self._held.values()):
            self.release(claim)

    def take(self, name: str) -> Claim | None:
        """Claim a name; None if another process holds it, or was quicker."""
        before = self._latest(name)
        judged = None
        if before is not None and not self._is_gone(before[1], judged := _look(before[1])):
            return None
        token = secrets.token_hex(8)
        generation = 0 if before is None else before[0] + 1
        claim = Claim(name, self._path(name, generation), token, generation)
        try:
            file = open(claim.path, "x", encoding="utf-8")  # noqa: SIM115 - below it is known whose it is
        except FileExistsError:
            return None
        except OSError as err:
            raise OutputError(f"{claim.path} cannot be written ({err.strerror or err}).") from err
        try:
            with file:
                file.write(json.dumps({"token": token, **_identity(), "time": time()}))
            # who was claimed from may have ended, and another begun anew, since it was looked at
            now = self._latest(name, below=generation)
            if now == before and (now is None or _look(now[1]) == judged) and self.holds(claim):
                with self._lock:
                    self._held[token] = claim
                return claim
        except OSError as err:
            raise OutputError(f"{claim.path} cannot be written ({err.strerror or err}).") from err
        finally:
            # after Ctrl-C or on a full disk as well, or it would be taken for a claim of a process that lives
            if token not in self._held:
                _delete(claim.path)
        return None

    def holds(self, claim: Claim) -> bool:
        """Whether a claim of this process was not taken over, as happens if the process stood still for long."""
        latest = self._latest(claim.name)
        return latest is not None and latest[1] == claim.path and _look(claim.path).said.get("token") == claim.token

    def release(self, claim: Claim) -> None:
        """Give a claim back, though another that was too late to take it over may be about to delete its own."""
        with self._lock:
            self._held.pop(claim.token, None)
        if _look(claim.path).said.get("token") != claim.token:
            return
        with suppress(OutputError):
            for generation, path in self._generations(claim.name):
                if generation < claim.generation:
                    _delete(path)
        _delete(claim.path)

    def holder(self, name: str) -> dict[str, Any] | None:
        """Who holds a name: ``host``, ``pid`` and ``time``; None if nobody does, or who did is gone."""
        latest = self._latest(name)
        if latest is None:
            return None
        seen = _look(latest[1])
        return None if self._is_gone(latest[1], seen) else seen.said

    def names(self) -> list[str]:
        """What has claims, of processes that are gone, too."""
        try:
            files = sorted(path.name for path in self.folder.iterdir() if path.name.endswith(".claim"))
        except OSError:
            return []
        return list(dict.fromkeys(name.rsplit(".", 2)[0] for name in files))

    def held(self) -> dict[str, dict[str, Any]]:
        """Who holds what, of all names, those who are not known to be gone."""
        return {name: holder for name in self.names() if (holder := self.holder(name)) is not None}

    def is_alive(self, name: str) -> bool:
        """Whether whoever holds a name was seen at work: if not, it may yet turn out to be gone."""
        latest = self._latest(name)
        return latest is not None and not self._is_gone(latest[1], _look(latest[1])) and latest[1] in self._alive

    def _is_gone(self, path: Path, seen: _Seen) -> bool:
        """Whether the process of a claim is no more, judged without comparing clocks."""
        own = _identity()
        if seen.said.get("machine") == own["machine"] is not None:
            pid = int(seen.said.get("pid", 0))
            started = _started(pid)
            if started == seen.said.get("started"):
                self._alive.add(path)
                return False
            if started is not None or not _is_hidden(pid):
                return True
        if seen.touched is None:
            return False  # it was given back just now
        first = self._seen.setdefault(path, (seen.touched, monotonic()))
        if first[0] != seen.touched:
            self._alive.add(path)
            self._seen[path] = seen.touched, monotonic()
            return False
        return monotonic() - first[1] >= self._stale

    def _keep_alive(self) -> None:
        while not self._stop.wait(self._beat):
            with self._lock:
                held = list(self._held.values())
            for claim in held:
                with suppress(OSError):
                    os.utime(claim.path)

    def _path(self, name: str, generation: int) -> Path:
        return self.folder / f"{name}.{generation}.claim"

    def _generations(self, name: str) -> list[tuple[int, Path]]:
        """The files of a name, oldest first."""
        own = re.compile(rf"{re.escape(name)}\.(\d+)\.claim")
        try:
            found = [(match, path) for path in self.folder.iterdir() if (match := own.fullmatch(path.name))]
        except OSError as err:
            raise OutputError(f"{self.folder} cannot be read ({err.strerror or err}).") from err
        return sorted((int(match[1]), path) for match, path in found)

    def _latest(self, name: str, *, below: int | None = None) -> tuple[int, Path] | None:
        found = [one for one in self._generations(name) if below is None or one[0] < below]
        return found[-1] if found else None


@contextmanager
def alone(folder: Path, name: str) -> Iterator[None]:
    """Do what has a name while no other process does, once whoever does has ended; ``folder`` is that of the claims."""
    with Claims(folder) as claims:
        while (claim := claims.take(name)) is None:
            sleep(1)
        try:
            yield
        finally:
            claims.release(claim)


def _delete(path: Path) -> None:
    with suppress(OSError):
        path.unlink()


class _Seen(NamedTuple):
    """A claim as it was found."""

    said: dict[str, Any]  # nothing where it is being written, or was given back
    touched: int | None


def _look(path: Path) -> _Seen:
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        said = None
    try:
        touched = path.stat().st_mtime_ns
    except OSError:
        touched = None
    return _Seen(said if isinstance(said, dict) else {}, touched)


def _identity() -> dict[str, Any]:
    pid = os.getpid()
    return {"host": socket.gethostname(), "machine": _machine(), "pid": pid, "started": _started(pid)}


@lru_cache
def _machine() -> str | None:
    """Where a number of a process means one process: a start of a machine, and in it a space of such numbers."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


def _started(pid: int) -> str | None:
    """When a process began, in ticks, as numbers of processes are used again; None if it ended."""
    try:
        facts = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if facts[0] in "ZX" else facts[19]


def _is_hidden(pid: int) -> bool:
    """Whether a process of another user lives that /proc does not show, as it is mounted on shared machines."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (OSError, OverflowError):
        pass
    return False
