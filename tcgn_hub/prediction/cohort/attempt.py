"""One slide of a cohort, from its claim to its line in the ledger: what every process does that takes part."""

from __future__ import annotations

import glob
import hashlib
import os
import re
import shutil
import socket
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any

import numpy as np

from tcgn_hub.errors import ImageError, NoTissueError, OutputError, SectionError, TcgnError
from tcgn_hub.files import make_folder, remove, write_text
from tcgn_hub.images.quality import REASONS
from tcgn_hub.images.readers import stat_of
from tcgn_hub.prediction.cohort.claims import Claim, Claims
from tcgn_hub.prediction.cohort.ledger import DONE, FAILED, HIDDEN, NO_TISSUE, STOPPED, Ledger, Record, digest
from tcgn_hub.prediction.cohort.outputs import Outputs
from tcgn_hub.prediction.slides import check_folder, limits_of
from tcgn_hub.result import Result
from tcgn_hub.units import UNITS
from tcgn_hub.version import __version__
from tcgn_hub.writing.bulk import bulk_row

if TYPE_CHECKING:
    from tcgn_hub.prediction.predictor import Predictor

_HALF = re.compile(r"(.+)\.[0-9a-f]{16}\.part")  # what `tcgn_hub.files.writing` writes to


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
        """Where what is done of a slide is kept, for whoever continues it by the same version."""
        of = hashlib.sha256(f"{self.run} {__version__}".encode()).hexdigest()
        return self.folder / HIDDEN / "partial" / f"{output}.{of[:8]}"

    def claims(self) -> Claims:
        """The claims on its slides."""
        return Claims(self.folder / HIDDEN / "claims")

    def forget(self, output: str) -> None:
        """Remove what is kept of a slide that has ended, by other runs, too; for who holds it."""
        for left in self.state(output).parent.glob(f"{glob.escape(output)}.{'[0-9a-f]' * 8}"):
            shutil.rmtree(left, ignore_errors=True)

    def tidy(self, outputs: Collection[str]) -> None:
        """Remove what processes have left that were killed as they wrote, or as a slide had ended."""
        with self.claims() as claims:
            kept = [path.name[:-9] for path in (self.folder / HIDDEN).glob("partial/*")]
            half = [(found[1], path) for path in self.folder.iterdir() if (found := _HALF.fullmatch(path.name))]
            half += [(name.removesuffix(".json"), path) for name, path in half]  # beside a table
            for output in set(outputs).intersection([*claims.names(), *kept, *(name for name, _ in half)]):
                if (claim := claims.take(output)) is not None:
                    self.forget(output)
                    for path in (path for name, path in half if name == output):
                        remove(path)
                    claims.release(claim)

    def needs(self, slide: Path, output: str, ledger: Ledger, *, attempts: int = 0) -> bool:
        """Whether a slide is to be predicted, by what the ledger says of it.

        ``attempts``: how many there were when this run began, as it tries again what failed before it, and not after.
        """
        last = ledger.last(output)
        if last is None or last.run != self.run or last.state == STOPPED:
            return True
        with suppress(OSError):
            stat = stat_of(slide)
            if (stat.st_size, stat.st_mtime_ns) != (last.size, last.mtime_ns):
                return True
            if str(slide.absolute()) != last.slide and slide.resolve() != Path(last.slide).resolve():
                return True
        if last.state == DONE:
            return not all((self.folder / name).exists() for name in last.files)
        if last.state != FAILED:
            return False
        return last.limits != limits_of(self.options) or (self.retry_failed and last.attempt <= attempts)


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
            record = begun.ended(**_predicted(job, slide, begun, predictor, claims, claim, ledger, progress))
        except Held:
            raise
        except Exception as err:
            known = isinstance(err, TcgnError)
            with suppress(OutputError):
                ledger.append(begun.ended(STOPPED, error=str(err) if known else f"{type(err).__name__}: {err}"), claims)
            raise
        ledger.append(record, claims)
        job.forget(output)
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
        limits=limits_of(job.options),
        versions={"tcgn_hub": __version__, "torch": version("torch")},
    )


def _predicted(
    job: Job,
    slide: Path,
    begun: _Begun,
    predictor: Predictor,
    claims: Claims,
    claim: Claim,
    ledger: Ledger,
    progress: bool,
) -> dict[str, Any]:
    """What became of a slide, in the words of a `Record`."""
    output = begun.record.output
    state = _usable(job.state(output), job, slide, predictor)
    try:
        result = predictor.slide(slide, resume=state, progress=progress, **job.options)
    except NoTissueError as err:
        return {"state": NO_TISSUE, "error": str(err)}
    except (ImageError, SectionError) as err:
        return {"state": FAILED, "error": str(err)}
    if not claims.holds(claim):
        raise Held  # this process stood still for so long that another has taken over
    last = ledger.last(output)
    if last is not None and last.state == DONE:
        # should this process end while it writes, the ledger must not say of new files what it said of the old ones
        ledger.append(begun.ended(STOPPED, error=f"What was written of {slide} is being replaced."), claims)
    written, said = job.outputs.write(result, job.folder / output, predictor=predictor, options=job.options)
    _write_bulk(job.folder, output, result)
    return {
        "state": DONE,
        "tiles": len(result),
        "failed_tiles": len(result.failed),
        "poor_tiles": sum((result.poor or {}).values()),
        "left_out_tiles": len(result.left_out),
        "files": {path.name: digest(path) for path in written},
        "quality": quality_of(result),
        "notes": [*said, *result.notes],
        "how": _how(predictor),
    }


def _usable(state: Path, job: Job, slide: Path, predictor: Predictor) -> Path:
    """A folder to resume from, without what is of the slide before it was changed, of another precision, or damaged."""
    backend = predictor.backend
    if state.exists():
        try:
            loaded = {"weights": predictor.info.sha256, "backend": backend.name, "precision": backend.precision}
            check_folder(state, slide, dict(job.options), **loaded)
        except OutputError:
            shutil.rmtree(state, ignore_errors=True)
        except OSError:
            pass  # of the slide, which is told where it is opened
    return state


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
    of those that are out of distribution; ``depth``: median of the predicted depth; ``poor``: share of the tiles that
    are of poor quality or left out for their quality; and ``focus``, ``pen``, ``fold`` and ``saturation``, the shares
    that are poor most of all by each of these, of the tiles that are not left out.
    """
    mask = None if result.slide is None else result.slide.mask
    is_ood, depth, poor = result.is_ood, result.obs.get("predicted_depth"), result.poor
    count, left_out = len(result), len(result.left_out)
    return {
        "tissue": None if mask is None else float(mask.mean()),
        "failed": len(result.failed) / max(count + left_out + len(result.failed), 1),
        "ood": None if is_ood is None else float(np.mean(is_ood)),
        "depth": None if depth is None else float(np.median(depth)),
        "poor": None if poor is None else (sum(poor.values()) + left_out) / max(count + left_out, 1),
        **{reason: None if poor is None else poor.get(reason, 0) / max(count, 1) for reason in REASONS},
    }


def bulk_file(folder: Path, output: str) -> Path:
    """Where the pseudo-bulk row of a slide lies."""
    return folder / HIDDEN / "bulk" / f"{output}.json"


def _write_bulk(folder: Path, output: str, result: Result) -> None:
    path = bulk_file(folder, output)
    if result.units != UNITS:
        path.unlink(missing_ok=True)  # that of other weights
        return
    make_folder(path.parent)
    write_text(path, bulk_row(result).to_json())


def _how(predictor: Predictor) -> dict[str, Any]:
    """How it computes, which may turn out as it does."""
    stated = predictor.metadata()
    return {key: stated[key] for key in ("backend", "precision", "compiled")}
