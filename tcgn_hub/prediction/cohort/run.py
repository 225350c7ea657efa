"""Many slides in, a file of each and a ledger out: in this process, in one of many shards, or on a cluster."""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
import os
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import asdict
from pathlib import Path
from time import sleep
from typing import TYPE_CHECKING, Any

from tcgn_hub.errors import DeviceError, ExtraError, ImageError, OutputError, WeightsError
from tcgn_hub.extras import require
from tcgn_hub.files import make_folder
from tcgn_hub.panels import named_genes
from tcgn_hub.prediction.cohort.attempt import Held, Job, attempt
from tcgn_hub.prediction.cohort.ledger import FAILED, STOPPED, Ledger, Record
from tcgn_hub.prediction.cohort.outputs import Outputs
from tcgn_hub.prediction.cohort.shards import in_order
from tcgn_hub.prediction.cohort.summary import BULK, SLIDES, write_summary
from tcgn_hub.prediction.patches import check_options
from tcgn_hub.prediction.slides import followed_options, predict_tiles
from tcgn_hub.progress import Progress
from tcgn_hub.text import counted, option

if TYPE_CHECKING:
    from distributed import Client

    from tcgn_hub.prediction.predictor import Predictor

_logger = logging.getLogger(__name__)

_OF_ONE = ("resume", "progress", "spots", "library")
_LONGEST = 220  # bytes of the name of a file, of 255 that most systems allow


def predict_cohort(
    predictor: Predictor,
    paths: Sequence[str | Path],
    out: str | Path,
    *,
    format: str = "h5ad",
    plot: Sequence[str] = (),
    map: str | None = None,
    report: bool = False,
    client: Client | str | None = None,
    local_workers: int | None = None,
    shard: tuple[int, int] | None = None,
    retry_failed: bool = False,
    progress: bool = False,
    told: Callable[[Record], None] | None = None,
    **options: Any,
) -> list[Record]:
    """Predict many slides, each into a file of its own.

    What becomes of each is a line of ``cohort.jsonl`` in the folder, see `Record`. A slide that the ledger says was
    done by the same weights and options is not done again, so that the same call continues what was interrupted; nor is
    one that could not be read, unless its file has changed, or ``force_scale`` or ``max_pixels`` is another. Any number
    of processes may work on one folder at once, on a network file system too: each slide is claimed by one of them, and
    a claim whose process is gone is taken over.

    When all slides have ended, ``cohort.csv`` says what became of each and which differ from the others, and
    ``bulk.csv`` has their pseudo-bulk, see `tcgn_hub.prediction.cohort.summary.write_summary`.

    Args:
        predictor: The weights.
        paths: The slides, each of another name, for the files are named after them.
        out: Folder of the files; it is made. On a cluster all workers see it, and the slides, under the same path.
        format: Of the files, by its suffix, as of `Result.write`.
        plot: Genes to draw maps of, beside the files.
        map: What is drawn of a gene: 'value' if None, or 'given_depth'.
        report: Write a report beside each file.
        client: A client of Dask, or the address of its scheduler, ``tcp://...``, or a scheduler file, ``FILE.json``:
            slides are predicted by its workers, one at a time by each.
        local_workers: Predict by a cluster of so many processes on this machine, which ends with the call.
        shard: Which of how many processes with the same call this is, from 0, such as ``(0, 8)``. It does its own part
            first, and then what the others have not begun.
        retry_failed: Try again slides that failed.
        progress: Show progress bars on stderr where that is a terminal, and else log a line a minute.
        told: Is called with each `Record` as it comes.
        **options: Those of `Predictor.slide`, but ``resume``, ``progress``, ``spots`` and ``library``.

    Returns:
        What became of each slide, in the order of the paths; those that another process still holds are left out.

    Raises:
        ImageError: There are no slides.
        OutputError: Two slides have one name, a format is not known, or a file cannot be written.
        PanelError: A gene is not among the outputs of the weights.
        DeviceError: There is no such cluster, or it was lost; what was done is kept.
        WeightsError: Weights on a cluster were not loaded by `tcgn_hub.load`, or are others there.
        ExtraError: A package is not installed.
    """
    _check(options, client, local_workers, shard)
    outputs = Outputs(f".{format.lstrip('.')}".lower(), tuple(plot), map, report)
    outputs.check()
    predictor.info.columns(options.get("genes"), significant_only=options.get("significant_only", False))
    outputs = outputs.drawn(predictor, options.get("genes"), significant_only=options.get("significant_only", False))
    slides = [Path(path) for path in paths]
    names = output_names(slides, outputs.format)
    _refuse_foreign(Path(out))
    make_folder(Path(out))
    if (named := named_genes(options.get("genes"))) is not None:
        options["genes"] = named  # of a file, which a worker might read elsewhere, and another time
    job = _job(predictor, Path(out), outputs, options, retry_failed)
    ledger = Ledger(out)
    before = {name: ledger.attempts(name, job.run) for name in names}
    # the same parts in all shards, whenever each begins and whatever has ended by then
    asked = in_order(list(zip(slides, names, strict=True)), shard or (0, 1))
    todo = [one for one in asked if job.needs(*one, ledger, attempts=before[one[1]])]
    todo.sort(key=lambda one: _is(STOPPED, ledger, one[1]))  # what was stopped before may stop this run as well
    if len(todo) < len(asked):
        begun = set(todo)
        failed = [one for one in asked if one not in begun and _is(FAILED, ledger, one[1])]
        again = f", {len(failed)} failed; {option('retry_failed', True)} tries them again" if failed else ""
        _logger.info("%s ended before%s.", counted(len(asked) - len(todo), "slide"), again)
    if todo and (client is not None or local_workers is not None):
        ended = _on_cluster(client, local_workers, job, predictor, todo, ledger, progress)
    else:
        ended = _here(job, predictor, todo, ledger, before, progress)
    with closing(ended):  # a cluster of its own too, if `told` fails
        for said in ended:
            if isinstance(said, str):
                _logger.info("%s.", said)
            elif told is not None:
                told(said)
    ledger.refresh()
    found = [ledger.last(name) for name in names]
    records = [record for record in found if record is not None and record.run == job.run]
    if len(records) == len(names) and all(record.ended_for_good for record in records):
        job.tidy(names)
        if len(names) > 1:
            write_summary(ledger, records)
    return records


def _is(state: str, ledger: Ledger, output: str) -> bool:
    last = ledger.last(output)
    return last is not None and last.state == state


def _refuse_foreign(out: Path) -> None:
    """Refuse a folder that has tables of somebody else by the names of those that are written."""
    for name, head in ((SLIDES, b"slide,output,state,"), (BULK, b"slide,tiles,")):
        try:
            with open(out / name, "rb") as file:
                begins = file.read(len(head))
        except OSError:
            continue
        if begins != head:
            raise OutputError(f"{out} holds {name}, which no run has written there; give another folder.")


def output_names(slides: Sequence[Path], suffix: str) -> list[str]:
    """The name of the file of each slide.

    Raises:
        ImageError: There are no slides.
        OutputError: Two of them have one name, or one is too long for what is written beside and before it.
    """
    if not slides:
        raise ImageError("There are no slides to predict.")
    names = [f"{slide.name}{suffix}" for slide in slides]
    if len(set(names)) < len(names):
        twice = max(names, key=names.count).removesuffix(suffix)
        raise OutputError(f"Two of the slides are named {twice}; give them folders of their own.")
    for slide, name in zip(slides, names, strict=True):
        if len(os.fsencode(name)) > _LONGEST:
            raise OutputError(f"The name of {slide} is too long to name files after; give a link to it instead.")
    return names


def _check(options: dict[str, Any], client: Any, local_workers: int | None, shard: tuple[int, int] | None) -> None:
    """Refuse what no cohort could be predicted by."""
    known = inspect.signature(predict_tiles).parameters
    unknown = [name for name in options if name not in known or name in (*_OF_ONE, "predictor", "path")]
    if unknown:
        raise TypeError(f"{unknown[0]} is no option for many slides")
    check_options(**options)
    ways = [client is not None, local_workers is not None, shard is not None]
    if sum(ways) > 1:
        raise DeviceError(
            f"A cluster, {option('local_workers')} and {option('shard')} are three ways to share the work; give one."
        )
    if local_workers is not None and local_workers < 1:
        raise ValueError(f"local_workers is {local_workers}, but must be at least 1")
    if shard is not None and not 0 <= shard[0] < shard[1]:
        raise ValueError(f"shard is {shard}, but must be a number and how many there are, from 0, such as (0, 8)")


def _job(predictor: Predictor, out: Path, outputs: Outputs, options: dict[str, Any], retry_failed: bool) -> Job:
    asked = predictor.asked or {}
    follows = {
        "sha256": predictor.info.sha256,
        "backend": predictor.backend.name,
        "precision": asked.get("precision", "auto"),
        "options": followed_options(options),
        "outputs": asdict(outputs),
    }
    if outputs.format == ".geojson":
        follows["asked"] = options.get("genes") is not None  # without which not all of them are in it
    run = hashlib.sha256(json.dumps(follows, sort_keys=True).encode()).hexdigest()
    return Job(str(out.absolute()), asked, predictor.info.sha256, options, outputs, run, retry_failed)


def _here(
    job: Job,
    predictor: Predictor,
    todo: Sequence[tuple[Path, str]],
    ledger: Ledger,
    before: dict[str, int],
    progress: bool,
) -> Generator[Record | str, None, None]:
    """Predict in this process whatever no other has ended or is at."""
    pending = list(todo)
    with job.claims() as claims, Progress(len(todo), "slide", shown=progress and len(todo) > 1) as bar:
        while pending:
            ended = 0
            for one in list(pending):
                slide, output = one
                try:
                    record = attempt(
                        job,
                        slide,
                        output,
                        predictor=predictor,
                        claims=claims,
                        ledger=ledger,
                        attempts=before[output],
                        progress=progress,
                    )
                except Held:
                    continue
                except ExtraError:  # which the others may not need
                    ledger.refresh()
                    record = ledger.last(output)
                    if record is None or record.state != STOPPED:
                        raise
                pending.remove(one)
                bar.update()
                ended += 1
                if record is not None:
                    yield record
            if pending and not ended:
                if all(claims.is_alive(output) for _, output in pending):
                    yield f"{counted(len(pending), 'slide')} left to other processes, which are at them"
                    return
                sleep(1)


def _on_cluster(
    client: Any,
    local_workers: int | None,
    job: Job,
    predictor: Predictor,
    todo: Sequence[tuple[Path, str]],
    ledger: Ledger,
    progress: bool,
) -> Generator[Record | str, None, None]:
    require("distributed", extra="cluster", to="predict on a cluster of Dask")
    from tcgn_hub.prediction.cohort.cluster import connected, on_this_machine, run_on

    if predictor.asked is None:
        raise WeightsError(f"{predictor.info.name} cannot be sent to a cluster, as tcgn_hub.load has not loaded it.")
    cluster: AbstractContextManager[Client]
    if local_workers is not None:
        cluster = on_this_machine(local_workers)
    elif isinstance(client, str):
        cluster = connected(client)
    else:
        cluster = nullcontext(client)
    with cluster as connection:
        yield from run_on(connection, job, todo, ledger, progress=progress)
