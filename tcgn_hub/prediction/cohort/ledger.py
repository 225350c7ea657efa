"""The ledger of a cohort: ``cohort.jsonl``, a line for each attempt at a slide, in the folder of its outputs."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import random
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from tcgn_hub.errors import OutputError
from tcgn_hub.prediction.cohort.claims import Claims
from tcgn_hub.weights.hub import sha256_of

_logger = logging.getLogger(__name__)

NAME = "cohort.jsonl"
HIDDEN = ".cohort"
"""What processes tell each other while they work, and what of each slide its outputs do not hold."""

DONE, NO_TISSUE, FAILED, STOPPED = "done", "no tissue", "failed", "stopped"
STATES = (DONE, NO_TISSUE, FAILED, STOPPED)
"""How an attempt ends: the first three say something of the slide; what was stopped is tried again by any later run, as
a full disk, a device or a process that was killed is no fault of the slide."""


@dataclass(frozen=True)
class Record:
    """An attempt at a slide.

    Attributes:
        slide: Its path, in full.
        size: Of the file, in bytes.
        mtime_ns: When the file was changed, in nanoseconds.
        output: Name of what is written of it, in the folder of the ledger.
        run: sha256 of all that outputs follow from: weights, options and formats.
        state: One of `STATES`.
        attempt: Which one it was, of this slide and run, from 1.
        tiles: How many were predicted, without those that are left out.
        failed_tiles: How many could not be read.
        poor_tiles: How many of those that were predicted are of poor quality, see `tcgn_hub.result.Result.poor`.
        left_out_tiles: How many are left out for their quality.
        seconds: How long it took.
        ended: When, ISO 8601 in UTC.
        error: In one sentence, why it failed or was stopped.
        host: Where it was computed.
        pid: By which process.
        weights: Name of the weights.
        sha256: Of the weights.
        how: ``backend``, ``precision`` and ``compiled``.
        limits: ``force_scale`` and ``max_pixels``, by which a slide may fail that another run can predict.
        versions: Of ``tcgn_hub`` and ``torch``.
        files: sha256 of each file that was written, by its name in the folder.
        quality: What a slide is compared with others by, see `tcgn_hub.prediction.cohort.summary`.
        notes: What was done that the user may not expect.
    """

    slide: str
    size: int
    mtime_ns: int
    output: str
    run: str
    state: str
    attempt: int = 1
    tiles: int = 0
    failed_tiles: int = 0
    poor_tiles: int = 0
    left_out_tiles: int = 0
    seconds: float = 0.0
    ended: str = ""
    error: str = ""
    host: str = ""
    pid: int = 0
    weights: str = ""
    sha256: str = ""
    how: dict[str, Any] = field(default_factory=dict)
    limits: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    quality: dict[str, float | None] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def ended_for_good(self) -> bool:
        """Whether it says something of the slide that another attempt would say again."""
        return self.state != STOPPED

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, said: Any) -> Record:
        """What `to_dict` gave; a ValueError if it is no such thing."""
        known = {one.name for one in fields(cls)}
        if not isinstance(said, dict) or said.get("state") not in STATES:
            raise ValueError("it is no record of a slide")
        try:
            return cls(**{key: value for key, value in said.items() if key in known})
        except TypeError as err:
            raise ValueError(f"it is no record of a slide ({err})") from err


class Ledger:
    """The ledger of a folder: read as far as it has grown, and appended to by one process at a time.

    ``folder``: where outputs are. ``written`` has the names of all files that any run has written there.

    Raises:
        OutputError: It cannot be read.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.path = self.folder / NAME
        self._read = self._lines = 0
        self._last: dict[str, Record] = {}
        self._attempts: dict[tuple[str, str], int] = {}
        self.written: set[str] = set()
        self.refresh()

    def refresh(self) -> None:
        """Read what was appended since; a line that is not whole, as one is for an instant, is read the next time."""
        try:
            with open(self.path, "rb") as file:
                file.seek(self._read)
                content = file.read()
        except FileNotFoundError:
            return
        except OSError as err:
            raise OutputError(f"{self.path} cannot be read ({err.strerror or err}).") from err
        whole = content[: content.rfind(b"\n") + 1]
        for line in whole.splitlines():
            self._lines += 1
            if line.strip():
                self._take(line)
        self._read += len(whole)

    def _take(self, line: bytes) -> None:
        try:
            record = Record.from_dict(json.loads(line))
        except (ValueError, RecursionError) as err:
            # as a loss of power leaves one; the slide is tried again
            _logger.warning("%s, line %d, is left out: %s.", self.path, self._lines, err)
            return
        self._last[record.output] = record
        self.written.update(record.files)
        key = record.output, record.run
        self._attempts[key] = max(self._attempts.get(key, 0), record.attempt)

    @property
    def records(self) -> list[Record]:
        """The last attempt at each slide, in the order in which slides were first tried."""
        return list(self._last.values())

    def last(self, output: str) -> Record | None:
        """The last attempt at what is written under a name."""
        return self._last.get(output)

    def attempts(self, output: str, run: str) -> int:
        """How many there were in a run."""
        return self._attempts.get((output, run), 0)

    def append(self, record: Record, claims: Claims) -> None:
        """Add a line, while no other process does."""
        line = (json.dumps(record.to_dict(), ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")
        while (claim := claims.take("ledger")) is None:
            time.sleep(random.uniform(0.005, 0.05))  # so that those who wait do not try together
        try:
            with open(self.path, "a+b") as file:
                before = file.seek(0, os.SEEK_END)
                if before:
                    file.seek(before - 1)
                    if file.read(1) != b"\n":
                        line = b"\n" + line  # a loss of power has left one without its end, which would spoil this one
                try:
                    file.write(line)
                    file.flush()
                    os.fsync(file.fileno())
                except OSError:
                    os.truncate(self.path, before)  # a full disk has taken a part of it
                    raise
        except OSError as err:
            raise OutputError(f"{self.path} cannot be written ({err.strerror or err}).") from err
        finally:
            claims.release(claim)


def check_outputs(ledger: Ledger, *, records: Sequence[Record] | None = None) -> Iterator[tuple[Record, str]]:
    """What is wrong with the files of each slide that is done, in one sentence, or nothing; as they are read.

    ``records``: of which slides, if not all.
    """
    for record in ledger.records if records is None else records:
        if record.state != DONE:
            continue
        yield record, _wrong(ledger.folder, record.files)


def _wrong(folder: Path, files: dict[str, str]) -> str:
    for name, expected in files.items():
        try:
            found = digest(folder / name)
        except OSError as err:
            return f"{folder / name} cannot be read ({err.strerror or err})"
        if found != expected:
            return f"{folder / name} is not what was written"
    return ""


def digest(path: Path) -> str:
    """Sha256 of what was written: of a file, or of the names in a folder and the sha256 of each file in it."""
    if not path.is_dir():
        return sha256_of(path, force=True)
    files = sorted(file for file in path.rglob("*") if file.is_file())
    listed = "".join(f"{file.relative_to(path).as_posix()}\n{sha256_of(file, force=True)}\n" for file in files)
    return hashlib.sha256(listed.encode("utf-8", "surrogateescape")).hexdigest()


def counts(records: Iterable[Record]) -> dict[str, int]:
    """How many slides are in each state, those states that there are."""
    found = [record.state for record in records]
    return {state: found.count(state) for state in STATES if state in found}
