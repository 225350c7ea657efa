"""A cohort on a cluster of Dask: a task is a slide.

Paths, weights by name and sha256, and options travel to the workers, and records of a few hundred bytes come back; the
slides and what is written lie in folders that all of them see. Weights are loaded once by each worker. A slide that was
lost with its worker is given to another by the scheduler; one that a worker could not write or compute, which is no
fault of the slide, is given to another worker here.
"""

from __future__ import annotations

import logging
import os
from asyncio import CancelledError
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex
from time import monotonic, sleep
from typing import Any, TypeVar

from distributed import Client, Future, LocalCluster, as_completed, get_worker
from distributed.core import Status
from distributed.diagnostics.plugin import WorkerPlugin
from distributed.scheduler import KilledWorker

from tcgn_hub.devices import keep_freed_memory, usable_cores
from tcgn_hub.errors import DeviceError, TcgnError, WeightsError
from tcgn_hub.prediction.cohort.attempt import Held, Job, attempt, lost_record, wait_for
from tcgn_hub.prediction.cohort.ledger import Ledger, Record
from tcgn_hub.progress import Progress, watching
from tcgn_hub.text import counted

_logger = logging.getLogger(__name__)

T = TypeVar("T")

ONE = "tcgn_hub"
"""What a worker has one of, and each task takes, so that it does one at a time."""

_TRIES = 3  # workers that a slide is given to, if it is stopped on each
_LEAST_AHEAD = 64
_TELL_S = 2.0


@contextmanager
def _quiet() -> Iterator[None]:
    """While this lasts, Dask does not log how a connection was lost, which is said in one sentence instead."""
    before = {name: logging.getLogger(name).level for name in ("distributed", "distributed.client")}
    for name in before:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)


@contextmanager
def connected(scheduler: str) -> Iterator[Client]:
    """A client of the scheduler at an address, such as ``tcp://node1:8786``, or that of a scheduler file.

    Raises:
        DeviceError: Nothing answers there.
    """
    is_file = scheduler.endswith(".json")
    if is_file and not os.path.exists(scheduler):
        raise DeviceError(f"There is no scheduler file {scheduler}; start `dask scheduler --scheduler-file` first.")
    with _quiet():
        try:
            client = Client(scheduler_file=scheduler) if is_file else Client(scheduler)
        except (OSError, ValueError) as err:
            raise DeviceError(f"No Dask scheduler answers at {scheduler} ({err}).") from err
        with client:
            yield client


@contextmanager
def on_this_machine(workers: int) -> Iterator[Client]:
    """A client of a cluster of so many processes on this machine, which ends with the block."""
    threads = max(1, usable_cores() // workers)
    with (
        _quiet(),
        LocalCluster(n_workers=workers, threads_per_worker=threads, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster) as client,
    ):
        yield client


class OneAtATime(WorkerPlugin):
    """Lets a worker have one task of ours at a time, which computes by all of its threads; see `ONE`."""

    name = "tcgn_hub one at a time"
    idempotent = True

    async def setup(self, worker: Any) -> None:
        """Declare it, as the worker starts."""
        await worker.set_resources(**{**worker.state.total_resources, ONE: 1})
        # the scheduler looks for tasks that waited for a worker when one comes, which has declared nothing yet, and
        # when one goes on after a pause
        if worker.status == Status.running:
            worker.status = Status.paused
            worker.status = Status.running


class _Weights(OneAtATime):
    """Loads the weights as a worker starts, too."""

    def __init__(self, job: Job) -> None:
        self.job, self.name = job, f"tcgn_hub {token_hex(8)}"  # another client may do the same, and end before

    async def setup(self, worker: Any) -> None:
        """Load them before the first slide."""
        await worker.loop.run_in_executor(None, _loaded, self.job)
        await super().setup(worker)


def each_on(
    client: Client, function: Callable[..., T], calls: Mapping[str, tuple[Any, ...]]
) -> Iterator[tuple[str, T]]:
    """What a function gives for each of some arguments, by the name of the call, as they end on a cluster.

    Raises:
        DeviceError: The cluster was lost.
        Exception: What a call raised, first of all of them; those that have not begun are then left out.
    """
    client.register_plugin(OneAtATime())
    resources = {ONE: 1, **({"GPU": 1} if _has_gpu(_workers(client)) else {})}
    futures = {
        client.submit(function, *arguments, key=f"tcgn-{name}-{token_hex(4)}", resources=resources, pure=False): name
        for name, arguments in calls.items()
    }
    try:
        for future in as_completed(futures, raise_errors=False):
            if future.status not in ("finished", "error"):
                raise DeviceError("The cluster was lost; what is done is kept, resume it on another.")
            yield futures[future], future.result()
    finally:
        with suppress(Exception):  # of a cluster that is gone
            client.cancel(list(futures))


def compute_as_alone() -> None:
    """Let the task of a worker compute as a process of its own would: by all of its threads, and with its memory kept.

    Dask lets it compute by one thread, for it gives it as many tasks as it has threads. PyTorch counts for each thread
    by itself, so that it is said where the task runs.
    """
    import torch

    torch.set_num_threads(get_worker().state.nthreads)
    keep_freed_memory()


def _loaded(job: Job) -> Any:
    """The weights of a job, which a process reads once."""
    from tcgn_hub.prediction.predictor import load

    predictor = load(**job.weights)
    if predictor.info.sha256 != job.sha256:
        raise WeightsError(f"{predictor.info.name} is another file on the machine of a worker than it was here.")
    return predictor


def _do(job: Job, slide: str, output: str, attempts: int) -> dict[str, Any]:
    """The task of a slide, on a worker: its record, or why there is none."""
    worker, topic = get_worker(), _topic(job)
    counted_tiles, told = 0, monotonic()

    def tell(progress: Progress, count: int) -> None:
        nonlocal counted_tiles, told
        counted_tiles += count if progress.unit == "tile" else 0
        if (now := monotonic()) - told >= _TELL_S:
            worker.log_event(topic, counted_tiles)
            counted_tiles, told = 0, now

    predictor = _loaded(job)
    if predictor.backend.name == "torch":
        compute_as_alone()
    ledger = Ledger(job.out)
    with job.claims() as claims, watching(tell):
        while True:
            try:
                record = attempt(
                    job,
                    Path(slide),
                    output,
                    predictor=predictor,
                    claims=claims,
                    ledger=ledger,
                    attempts=attempts,
                )
            except Held:
                if wait_for(claims, output):
                    continue
                return {"held": claims.holder(output)}
            except Exception as err:
                _logger.exception("%s was stopped.", slide)
                return {"stopped": str(err) if isinstance(err, TcgnError) else f"{type(err).__name__}: {err}"}
            break
    if counted_tiles:
        worker.log_event(topic, counted_tiles)
    return {"record": record and record.to_dict()}


def run_on(
    client: Client, job: Job, todo: Sequence[tuple[Path, str]], ledger: Ledger, *, progress: bool
) -> Iterator[Record | str]:
    """Predict slides on a cluster.

    Args:
        client: Of the cluster.
        job: What to do.
        todo: Slides, and the names of the files of their tiles.
        ledger: Of the folder.
        progress: Show slides and tiles.

    Yields:
        The attempts as they end, and a sentence of each slide that another run holds.

    Raises:
        DeviceError: The cluster was lost; what was done is kept.
        TcgnError: The weights cannot be loaded on a worker.
    """
    _logger.info("The dashboard of the cluster is at %s.", client.dashboard_link)
    weights = _Weights(job)
    try:
        client.register_plugin(weights)
    except Exception:
        with suppress(Exception):  # or workers that come later would fail as well
            client.unregister_worker_plugin(weights.name)
        raise
    if not _workers(client):
        _logger.info("It has no workers yet; slides wait for them.")
    with _Run(client, job, weights.name, ledger, Progress(len(todo), "slide", shown=progress)) as run:
        yield from run.over(todo)


class _Run:
    """Slides that are on their way: few at a time, so that thousands take no memory here and on the scheduler."""

    def __init__(self, client: Client, job: Job, plugin: str, ledger: Ledger, progress: Progress) -> None:
        self.client, self.job, self.plugin, self.ledger, self.progress = client, job, plugin, ledger, progress
        self.waiting: deque[tuple[Path, str]] = deque()
        self.out: dict[Future, tuple[Path, str]] = {}
        self.stopped_at: dict[str, list[str]] = {}  # of each slide, the workers that could not do it
        self.only: dict[Future, set[str]] = {}  # of those that some workers alone may do, which these are
        self.before: dict[str, int] = {}  # attempts at each slide when this began
        self.tiles = 0

    def __enter__(self) -> _Run:
        self.progress.__enter__()
        self.client.subscribe_topic(_topic(self.job), self._hear)
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(Exception):  # of a cluster that is gone
            self.client.cancel(list(self.out), force=True)
            self.client.unsubscribe_topic(_topic(self.job))
            self.client.unregister_worker_plugin(self.plugin)
        self.progress.__exit__()

    def _hear(self, event: Any) -> None:
        self.tiles += int(event[1])
        self.progress.note(counted(self.tiles, "tile"))

    def over(self, todo: Sequence[tuple[Path, str]]) -> Iterator[Record | str]:
        self.waiting.extend(todo)
        self.before = {output: self.ledger.attempts(output, self.job.run) for _, output in todo}
        done = as_completed([], raise_errors=False)
        self._submit(done)
        while self.out:
            future = self._next(done)
            if future in self.out:  # and was not given to others
                yield from self._ended(future)
            self._submit(done)

    def _next(self, done: Any) -> Future:
        """What has ended next; slides whose workers, all that may do them, have left go to others meanwhile."""
        while self.only and not done.has_ready():
            sleep(_TELL_S)
            workers = set(self._workers())
            for future in [future for future, good in self.only.items() if not good & workers]:
                del self.only[future]
                self.waiting.append(self.out.pop(future))
                future.cancel()
            self._submit(done)
        return next(done)

    def _submit(self, done: Any) -> None:
        ahead = max(_LEAST_AHEAD, 4 * len(self._workers())) if self.waiting else 0
        while self.waiting and len(self.out) < ahead:
            slide, output = self.waiting.popleft()
            future = self._task(slide, output)
            self.out[future] = slide, output
            done.add(future)

    def _task(self, slide: Path, output: str) -> Future:
        workers = self._workers()
        bad = self.stopped_at.get(output, [])
        good = [address for address in workers if address not in bad] if bad else []
        future = self.client.submit(
            _do,
            self.job,
            str(slide.absolute()),
            output,
            self.before[output],
            key=f"tcgn-{output}-{token_hex(4)}",
            resources={ONE: 1, **({"GPU": 1} if _has_gpu(workers) else {})},
            workers=good or None,
            pure=False,
        )
        if good:
            self.only[future] = set(good)
        return future

    def _workers(self) -> dict[str, Any]:
        try:
            return _workers(self.client)
        except (OSError, TimeoutError, RuntimeError) as err:
            raise self._lost() from err

    def _ended(self, future: Future) -> Iterator[Record | str]:
        slide, output = self.out.pop(future)
        self.only.pop(future, None)
        said, err = self._said(future)
        self.ledger.refresh()
        if said is None:
            yield self._killed(slide, output, err)
        elif "held" in said and said["held"] is None:  # who held it has ended just now
            self.waiting.append((slide, output))
            return
        elif "stopped" in said:
            if self._elsewhere(slide, output, future):
                return
            last = self.ledger.last(output)
            yield last if last and last.error == said["stopped"] else f"{slide}: {said['stopped']}"
        elif "held" in said:
            by = said["held"]
            yield f"{slide} is being predicted by process {by.get('pid')} on {by.get('host')}, and left to it"
        elif said["record"] is not None:
            yield Record.from_dict(said["record"])
        self.progress.update()

    def _said(self, future: Future) -> tuple[dict[str, Any] | None, BaseException | None]:
        """What a task has given, or why it has not; only Dask raises there."""
        if future.status not in ("finished", "error"):
            raise self._lost()
        try:
            return (future.result(), None) if future.status == "finished" else (None, future.exception())
        except (OSError, TimeoutError, RuntimeError, CancelledError) as err:
            raise self._lost() from err

    def _elsewhere(self, slide: Path, output: str, future: Future) -> bool:
        """Give a slide that was stopped to a worker that has not tried; whether there is one."""
        bad = self.stopped_at.setdefault(output, [])
        bad.append(self._worker_of(future))
        if len(bad) >= _TRIES or not set(self._workers()) - set(bad):
            return False
        self.waiting.append((slide, output))
        return True

    def _worker_of(self, future: Future) -> str:
        held = self.client.who_has([future]).get(future.key) or ("",)
        return held[0]

    def _killed(self, slide: Path, output: str, err: BaseException | None) -> Record:
        last = self.ledger.last(output)
        if last is not None and not self.job.needs(slide, output, self.ledger, attempts=self.before[output]):
            return last  # somebody was quicker, or a worker died once it had written
        if isinstance(err, KilledWorker):
            why = f"{slide} is not predicted: the workers that tried it died; their logs may say why, such as memory."
        else:
            why = f"{slide} is not predicted ({type(err).__name__}: {err})."
        with self.job.claims() as claims:
            record = lost_record(self.job, slide, output, self.ledger, why)
            self.ledger.append(record, claims)
        return record

    def _lost(self) -> DeviceError:
        left = len(self.out) + len(self.waiting) + 1
        return DeviceError(
            f"The cluster at {self.client.scheduler.address if self.client.scheduler else 'its address'} was lost with"
            f" {counted(left, 'slide')} to do; what is done is kept, run again to continue."
        )


def _workers(client: Client) -> dict[str, Any]:
    return client.scheduler_info(n_workers=-1)["workers"]


def _has_gpu(workers: Mapping[str, Any]) -> bool:
    return any("GPU" in worker.get("resources", {}) for worker in workers.values())


def _topic(job: Job) -> str:
    return f"tcgn_hub {job.run}"
