"""One slide of a cohort, from its claim to its line in the ledger: what every process does that takes part."""

from __future__ import annotations

import glob
import os
import shutil
import socket
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any

import numpy as np

from tcgn_hub.errors import ImageError, NoTissueError, OutputError, SectionError, TcgnError
from tcgn_hub.files import make_folder, write_text
from tcgn_hub.images.readers import stat_of
from tcgn_hub.prediction.cohort.claims import Claim, Claims
from tcgn_hub.prediction.cohort.ledger import DONE, FAILED, HIDDEN, NO_TISSUE, STOPPED, Ledger, Record
from tcgn_hub.prediction.cohort.outputs import Outputs
from tcgn_hub.result import Result
from tcgn_hub.units import UNITS
from tcgn_hub.version import __version__
from tcgn_hub.weights.hub import sha256_of
from tcgn_hub.writing.bulk import bulk_row

if TYPE_CHECKING:
    from tcgn_hub.prediction.predictor import Predictor


@dataclass(frozen=True)
class Job:
    """What is done with each slide of a cohort, in words that another machine understands.

    Attributes:
        out: Folder of the outputs, in full.
        weights: What `tcgn_hub.load` is given, paths in full.
        sha256: Of the weights that have to come of it.
        options: Of `tcgn_hub.Predictor.slide`.
        outputs: What is written.
        run: sha256 of what outputs follow from.
        retry_failed: Whether slides that failed are tried again.
    """

    out: str
    weights: Mapping[str, Any]
    sha256: str
    options: Mapping[str, Any]
    outputs: Outputs
    run: str
    retry_failed: bool = False

    @property
    def folder(self) -> Path:
        """The folder of the outputs."""
        return Path(self.out)

    def state(self, output: str) -> Path:
        """Where what is done of a slide is kept, for whoever continues it."""
        return self.folder / HIDDEN / "partial" / f"{output}.{self.run[:8]}"

    def claims(self) -> Claims:
        """The claims on its slides."""
        return Claims(self.folder / HIDDEN / "claims")

    def needs(self, slide: Path, output: str, ledger: Ledger, *, attempts: int = 0) -> bool:
        """Whether a slide is to be predicted, by what the ledger says of it.

        ``attempts``: how many there were when this run began, as it tries again what failed before it, and not after.
        """
        last = ledger.last(output)
        if last is None or last.run != self.run or last.state == STOPPED:
            return True
        with suppress(OSError):
            stat = stat_of(slide)
            if (stat.st_size, stat.st_mtime_ns, str(slide.absolute())) != (last.size, last.mtime_ns, last.slide):
                return True
        if last.state == DONE:
            return not all((self.folder / name).is_file() for name in last.files)
        return self.retry_failed and last.state == FAILED and last.attempt <= attempts


class Held(Exception):  # noqa: N818 - nothing is wrong
    """Another process is at a slide, or was when this one looked."""


def attempt(
    job: Job,
    slide: Path,
    output: str,
    *,
    predictor: Predictor,
    claims: Claims,
    ledger: Ledger,
    attempts: int = 0,
    progress: bool = False,
) -> Record | None:
    """Predict a slide, write what is asked for and the line of the ledger, unless that was done.

    Args:
        job: What to do.
        slide: The file.
        output: Name of the file of its tiles.
        predictor: The weights.
        claims: Those of this process.
        ledger: That of the folder.
        attempts: See `Job.needs`.
        progress: Show tiles.

    Returns:
        The attempt; None if the slide needed none.

    Raises:
        Held: Another process holds the slide.
        Exception: What is no fault of the slide, once the ledger has it.
    """
    claim = claims.take(output)
    if claim is None:
        raise Held
    try:
        ledger.refresh()  # who held it before may have ended it
        if not job.needs(slide, output, ledger, attempts=attempts):
            return None
        asked = replace(_asked(job, slide, output, ledger), weights=predictor.info.name, how=_how(predictor))
        begun = _Begun(monotonic(), asked)
        try:
            record = begun.ended(**_predicted(job, slide, output, predictor, claims, claim, progress))
        except Held:
            raise
        except Exception as err:
            known = isinstance(err, TcgnError)
            with suppress(OutputError):
                ledger.append(begun.ended(STOPPED, error=str(err) if known else f"{type(err).__name__}: {err}"), claims)
            raise
        ledger.append(record, claims)
        for left in job.state(output).parent.glob(f"{glob.escape(output)}.{'[0-9a-f]' * 8}"):  # of other runs, too
            shutil.rmtree(left, ignore_errors=True)
        return record
    finally:
        claims.release(claim)


@dataclass(frozen=True)
class _Begun:
    """An attempt that is under way."""

    at: float
    record: Record

    def ended(self, state: str, **more: Any) -> Record:
        return replace(self.record, state=state, seconds=round(monotonic() - self.at, 3), ended=_now(), **more)


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _asked(job: Job, slide: Path, output: str, ledger: Ledger) -> Record:
    """What is known of an attempt wherever it is made."""
    try:
        stat = stat_of(slide)
        size, changed = stat.st_size, stat.st_mtime_ns
    except OSError:
        size = changed = -1
    return Record(
        slide=str(slide.absolute()),
        size=size,
        mtime_ns=changed,
        output=output,
        run=job.run,
        state=STOPPED,
        attempt=ledger.attempts(output, job.run) + 1,
        host=socket.gethostname(),
        pid=os.getpid(),
        sha256=job.sha256,
        versions={"tcgn_hub": __version__, "torch": version("torch")},
    )


def _predicted(
    job: Job, slide: Path, output: str, predictor: Predictor, claims: Claims, claim: Claim, progress: bool
) -> dict[str, Any]:
    """What became of a slide, in the words of a `Record`."""
    to = job.folder / output
    try:
        result = predictor.slide(slide, resume=job.state(output), progress=progress, **job.options)
    except NoTissueError as err:
        return {"state": NO_TISSUE, "error": str(err)}
    except (ImageError, SectionError) as err:
        return {"state": FAILED, "error": str(err)}
    if not claims.holds(claim):
        raise Held  # this process stood still for so long that another has taken over
    written, said = job.outputs.write(result, to, predictor=predictor, options=job.options)
    _write_bulk(job.folder, output, result)
    return {
        "state": DONE,
        "tiles": len(result),
        "failed_tiles": len(result.failed),
        "files": {path.name: sha256_of(path, force=True) for path in written},
        "quality": quality_of(result),
        "notes": [*said, *result.notes],
        "how": _how(predictor),
    }


def lost_record(job: Job, slide: Path, output: str, ledger: Ledger, why: str) -> Record:
    """That nothing came of a slide, said by who had asked for it."""
    return replace(_asked(job, slide, output, ledger), error=why, ended=_now())


def wait_for(claims: Claims, output: str, *, every: float = 1.0) -> bool:
    """Wait until it is known whether who holds a slide is at work; gives whether it can be taken."""
    while claims.holder(output) is not None:
        if claims.is_alive(output):
            return False
        sleep(every)
    return True


def quality_of(result: Result) -> dict[str, float | None]:
    """What a slide is compared with others by, None where it is not known.

    ``tissue``: share of the slide that is tissue; ``failed``: share of the tiles that could not be read; ``ood``: share
    of those that are out of distribution; ``depth``: median of the predicted depth.
    """
    mask = None if result.slide is None else result.slide.mask
    is_ood, depth = result.is_ood, result.obs.get("predicted_depth")
    return {
        "tissue": None if mask is None else float(mask.mean()),
        "failed": len(result.failed) / max(len(result) + len(result.failed), 1),
        "ood": None if is_ood is None else float(np.mean(is_ood)),
        "depth": None if depth is None else float(np.median(depth)),
    }


def bulk_file(folder: Path, output: str) -> Path:
    """Where the pseudo-bulk row of a slide lies."""
    return folder / HIDDEN / "bulk" / f"{output}.json"


def _write_bulk(folder: Path, output: str, result: Result) -> None:
    if result.units != UNITS:
        return
    path = bulk_file(folder, output)
    make_folder(path.parent)
    write_text(path, bulk_row(result).to_json())


def _how(predictor: Predictor) -> dict[str, Any]:
    """How it computes, which may turn out as it does."""
    stated = predictor.metadata()
    return {key: stated[key] for key in ("backend", "precision", "compiled")}
