"""What a cluster costs beside one process, and whether thousands of slides keep it busy.

    python benchmarks/cohort.py                  # both parts, ten minutes or so
    python benchmarks/cohort.py --quick          # does the script work? its numbers mean nothing
    python benchmarks/cohort.py --only many --slides 2000 --workers 8 --seconds 1

``one``: the default weights, ``--copies`` of ``examples/cmu_small_region.svs`` on a grid of ``--stride``, by
`Predictor.slides` in this process and by one worker of Dask with as many threads, in turns. Both have the weights
loaded before the clock starts, and neither compiles. The goal is an overhead of at most 5 %.

``many``: ``--slides`` slides of which each takes ``--seconds`` and no more, for a network that sleeps and a result of
two tiles, with a real scheduler and ``--workers`` real workers: claims, outputs, ledger and all are as of any slide.
*ideal* is slides times seconds over workers; the goal is at most 5 % above it. *scheduler* and *client* are resident
memory in MiB after a tenth of the slides and after all, which is flat if thousands take no more than hundreds. The
clock starts once the workers are there, and the workers share the cores of this machine: what is not sleeping is in
each other's way, as on a cluster it is not.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

SLIDE = ROOT / "examples" / "cmu_small_region.svs"
_SLEEPS = '''
"""Weights that sleep, for the workers of a benchmark."""
import time
from tcgn_hub.prediction import predictor as home

# the module may be run twice in a process
real, made = vars(home).setdefault("without_sleep", home.load), []

def load(**asked):
    if not made:
        predictor = real(**asked)
        made.append((predictor, predictor.patches([{patch!r}] * 2, genes=predictor.info.genes[:3])))
    predictor, result = made[0]

    def slide(path, **_):
        time.sleep({seconds})
        return result

    predictor.slide = slide
    return predictor

home.load = load
'''


class Cluster:
    """A scheduler and workers of `dask`, in processes of their own."""

    def __init__(self, folder: Path, workers: int, threads: int, preload: Path | None = None) -> None:
        self.file = folder / "scheduler.json"
        self.env = {**os.environ, "PYTHONPATH": str(ROOT)}
        if threads == 1:
            self.env["OMP_NUM_THREADS"] = "1"
        here = ["--host", "127.0.0.1", "--no-dashboard", "--scheduler-file", str(self.file)]
        self.processes = [self._start(["scheduler", "--port", "0", *here])]
        place = [
            "--nthreads",
            str(threads),
            "--local-directory",
            str(folder),
            *(["--preload", str(preload)] * bool(preload)),
        ]
        self.processes += [self._start(["worker", *here, *place]) for _ in range(workers)]

    def _start(self, arguments: list[str]) -> subprocess.Popen[bytes]:
        quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        return subprocess.Popen([sys.executable, "-m", "dask", *arguments], env=self.env, **quiet)

    def close(self) -> None:
        """End it."""
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            process.wait()


def memory_mib(pid: int | str = "self") -> float:
    """Resident memory of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def copies_of(folder: Path, count: int) -> list[Path]:
    folder.mkdir()
    paths = [folder / f"s{number:05}.svs" for number in range(count)]
    for path in paths:
        path.symlink_to(SLIDE)
    return paths


def one_worker(args: argparse.Namespace, folder: Path) -> None:
    """Print the overhead of a worker over this process."""
    from distributed import Client

    import tcgn_hub
    from tcgn_hub.devices import usable_cores

    predictor = tcgn_hub.load(compile="off")
    paths = copies_of(folder / "one", args.copies)
    options = {"stride_um": args.stride}
    predictor.slides(paths[:1], folder / "warm", **options)
    times: dict[str, list[float]] = {"here": [], "worker": []}
    with contextlib.closing(Cluster(folder, 1, usable_cores())) as cluster:
        time.sleep(1)
        with Client(scheduler_file=str(cluster.file)) as client:
            client.wait_for_workers(1)
            predictor.slides(paths[:1], folder / "warm2", client=client, **options)
            for round in range(args.rounds):
                for name, own in (("here", {}), ("worker", {"client": client})):
                    began = time.perf_counter()
                    predictor.slides(paths, folder / f"{name}{round}", **own, **options)
                    times[name].append(time.perf_counter() - began)
    ratios = [worker / here for here, worker in zip(times["here"], times["worker"], strict=True)]
    shown = ", ".join(f"{name} {statistics.median(seconds):.1f} s" for name, seconds in times.items())
    overhead = 100 * (statistics.median(ratios) - 1)
    span = f"[{100 * (min(ratios) - 1):.1f}, {100 * (max(ratios) - 1):.1f}]"
    print(
        f"one worker, {args.copies} slides, {args.rounds} rounds: {shown}: overhead {overhead:.1f} % {span}, goal 5 %"
    )


def many_slides(args: argparse.Namespace, folder: Path) -> None:
    """Print how close to ideal thousands of slides are, and the memory of who hands them out."""
    from distributed import Client

    import tcgn_hub

    preload = folder / "sleeps.py"
    preload.write_text(_SLEEPS.format(seconds=args.seconds, patch=str(ROOT / "examples" / "patch.png")))
    paths = copies_of(folder / "many", args.slides)
    predictor = tcgn_hub.load(compile="off")
    with contextlib.closing(Cluster(folder, args.workers, 1, preload)) as cluster:
        time.sleep(1)
        with Client(scheduler_file=str(cluster.file)) as client:
            client.wait_for_workers(args.workers)
            scheduler = cluster.processes[0].pid
            predictor.slides(paths[: args.workers], folder / "warm3", client=client, format="json")
            seen: list[tuple[float, float]] = []

            def told(_: object) -> None:
                seen.append((memory_mib(scheduler), memory_mib()))

            began = time.perf_counter()
            records = predictor.slides(paths, folder / "out", client=client, format="json", told=told)
            took = time.perf_counter() - began
    assert [record.state for record in records] == ["done"] * args.slides
    ideal = args.slides * args.seconds / args.workers
    early, late = seen[len(seen) // 10], seen[-1]
    print(
        f"{args.slides} slides of {args.seconds:g} s, {args.workers} workers: {took:.1f} s, ideal {ideal:.1f} s,"
        f" {100 * (took / ideal - 1):.1f} % above, goal 5 %"
    )
    for name, before, after in zip(("scheduler", "client"), early, late, strict=True):
        print(f"{name}: {before:.0f} MiB after {len(seen) // 10} slides, {after:.0f} MiB after {len(seen)}")


def main() -> None:
    """Run what is asked for."""
    text, _, _ = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(description=text)
    parser.add_argument("--only", choices=("one", "many"))
    parser.add_argument("--copies", type=int, default=4, help="slides of the first part, by default 4")
    parser.add_argument("--stride", type=float, default=60, help="distance of its tiles in um, by default 60")
    parser.add_argument("--rounds", type=int, default=3, help="by default 3")
    parser.add_argument("--slides", type=int, default=2000, help="slides of the second part, by default 2000")
    parser.add_argument("--workers", type=int, default=8, help="its workers, by default 8")
    parser.add_argument("--seconds", type=float, default=1, help="what each of its slides takes, by default 1")
    parser.add_argument("--quick", action="store_true", help="few slides and one round")
    args = parser.parse_args()
    if args.quick:
        args.copies, args.stride, args.rounds, args.slides, args.workers, args.seconds = 2, 300, 1, 40, 2, 0.1
    with tempfile.TemporaryDirectory() as place:
        for name, part in (("one", one_worker), ("many", many_slides)):
            if args.only in (None, name):
                part(args, Path(place))


if __name__ == "__main__":
    main()
