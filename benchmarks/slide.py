"""Speed and memory of a whole slide, from opening it to the written .h5ad, beside the model alone in the same run.

    python benchmarks/slide.py                    # both slides, minutes on a CPU
    python benchmarks/slide.py --quick            # does the script work? its numbers mean nothing
    python benchmarks/slide.py --device cuda --batch-size 128 --workers 8 --blocks 200 --stride 8
    python benchmarks/slide.py --tiles 1000000    # the trip alone: memory and tiles/s without a model
    python benchmarks/slide.py --features         # likewise of the pyramid, with the features of each tile

Slides. ``cmu`` is ``examples/cmu_small_region.svs``, 2220 x 2967 px, on a grid of ``--stride``. ``pyramid`` is a tiled
BigTIFF of ``--side`` x ``--side`` px that the script makes: blank glass, and ``--blocks`` pieces of 2048 x 2048 px of
the first slide far apart, on a grid of tiles that touch. Few of its JPEG tiles differ, and each of those is encoded
once.

Every end-to-end run is a process of its own. What it imports is imported before the clock starts; everything after
that counts, starting worker processes and loading the weights included.

Columns.
    tiles      Tiles that were predicted.
    model      Tiles/s of the model on input tensors that are ready, at the same batch size and threads: the mean of a
               measurement just before the end-to-end run and one just after. It is the limit.
    whole      Tiles/s of the end-to-end run: tiles over all of its seconds.
    of model   ``whole`` over ``model``. The goal is 85 %.
    stream     Tiles/s from the first tile on: without opening, finding tissue, starting workers and writing.
    of model   ``stream`` over ``model``.
    memory     MiB of resident memory: the highest sum over the processes of the run of what each has, where pages that
               several have are shared among them (PSS, looked at twice a second; 'n/a' where there is no /proc).
    at most    MiB: the sum of the highest resident memory of each process, pages that several have counted in each.
               Exact for the main process. The goal is 3 GiB for the pyramid. Without /proc, the largest process alone.

The trip alone. ``--tiles`` and ``--features`` predict by a model that costs nothing: it gives 785 genes and 1280
features of numbers that were drawn before. ``--tiles N`` is a plain picture with a grid of N tiles of 64 px, each of
which counts as tissue; ``--features`` the pyramid at the default stride, with the features of each tile. Both keep what
is done for a run that continues, as the command does, and write an .h5ad. What is left is what the trip of the tiles
costs. The goals are 4 GiB for a million tiles and 3 GiB for the pyramid with features, in all processes.

All are medians over rounds, in which the slides take turns; a ratio is the median of the ratios of the rounds. The
second table has the seconds of the steps: ``open`` and the weights, ``overview``, ``tissue`` and choosing tiles, the
wait for the ``first`` batch of tiles, then ``compute`` (resampling, transform and model), ``wait`` for tiles that are
not ready, which includes collecting results, ``write``, and ``other``.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from machine import processor_name, progress, usable_cores  # noqa: E402

from tcgn_hub import load  # noqa: E402
from tcgn_hub.images.readers import open_slide  # noqa: E402
from tcgn_hub.images.slides import Slide  # noqa: E402
from tcgn_hub.prediction import slides  # noqa: E402
from tcgn_hub.prediction.predictor import Predictor  # noqa: E402
from tcgn_hub.weights.hub import resolve  # noqa: E402
from tcgn_hub.weights.model_dir import info_of  # noqa: E402

SVS = ROOT / "examples" / "cmu_small_region.svs"
MPP = 0.499
TILE, FACTOR = 512, 4  # side of a JPEG tile, and downsampling from level to level
GLASS = (243, 241, 244)
SAMPLE_S = 0.5
PYRAMID_STRIDE = 154.0  # um, the side of a tile of the default weights
STEPS = ("open", "overview", "tissue", "first", "compute", "wait", "write", "other")
GOAL, GOAL_MIB, GOAL_MANY_MIB = 0.85, 3 * 1024, 4 * 1024
SMALL_PX, SMALL_STRIDE_PX = 64, 2  # of the tiles of a picture that has any number of them


@dataclass
class Case:
    """A slide, and what its rounds measured."""

    name: str
    path: Path
    stride: float
    model: list[float] = field(default_factory=list)
    runs: list[dict[str, Any]] = field(default_factory=list)

    def median(self, value: Callable[[dict[str, Any]], float]) -> float:
        """Of a value over the rounds."""
        return statistics.median(map(value, self.runs))

    def of_model(self, key: str) -> float:
        """Median ratio of a rate of the rounds to the model's."""
        return statistics.median(run[key] / model for run, model in zip(self.runs, self.model, strict=True))


def write_pyramid(path: Path, side: int, blocks: int) -> None:
    """A slide of ``side`` x ``side`` px whose levels are exact reductions of each other.

    Tiles are known by numbers: a level is a grid of numbers and one picture for each, and every distinct group of 4 x 4
    numbers is a tile of the next level.
    """
    import tifffile

    with open_slide(SVS) as slide:
        step = range(0, FACTOR * TILE, TILE)
        pictures = [np.full((TILE, TILE, 3), GLASS, np.uint8)]
        pictures += [slide.read(x, y, TILE, TILE) for y in step for x in step]
    count = -(-side // TILE)
    places = side // (FACTOR * TILE)
    grid = np.zeros((count, count), int)
    for place in np.random.default_rng(0).permutation(places**2)[:blocks]:
        row, col = (FACTOR * int(i) for i in divmod(int(place), places))
        grid[row : row + FACTOR, col : col + FACTOR] = np.arange(1, FACTOR**2 + 1).reshape(FACTOR, FACTOR)

    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        size, level = side, 0
        while True:
            encoded = [jpeg(picture) for picture in pictures]
            tiff.write(
                (encoded[number] for number in grid.flat),
                shape=(size, size, 3),
                dtype=np.uint8,
                tile=(TILE, TILE),
                photometric="ycbcr",
                compression="jpeg",
                subsampling=(2, 2),
                subfiletype=min(level, 1),
                resolution=(1e4 / (MPP * FACTOR**level),) * 2,
                resolutionunit="centimeter",
                metadata=None,
            )
            if size <= 4 * TILE:
                return
            size, level = -(-size // FACTOR), level + 1
            grid, pictures = reduce(grid, pictures)


class NoModel:
    """A backend that costs nothing: it gives numbers that were drawn before, and looks at no tile."""

    name, precision, batch_size = "torch", "float32", 32
    compiled, in_flight = False, 0

    def __init__(self, genes: int) -> None:
        rng = np.random.default_rng(0)
        self._values, self._features = (rng.random((4096, width), np.float32) for width in (genes, 1280))
        self._at = 0

    def expect(self, count: int, batch_size: int, *, tta: int = 1) -> None:
        """Nothing has to be ready for them."""

    def prepare(self, pixels: Any) -> Any:
        """As many small grey tiles, of which the quality is told."""
        return np.zeros((len(pixels), 3, 16, 16), np.float32)

    def forward(self, x: Any, index: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """As many of the numbers, the next each time."""
        self._at = (self._at + len(x)) % (len(self._values) - len(x))
        rows = slice(self._at, self._at + len(x))
        return self._values[rows], self._features[rows]

    def start(self, x: Any, index: int = 0) -> Callable[[], tuple[np.ndarray, np.ndarray]]:
        """What `forward` gives."""
        return functools.partial(self.forward, x, index)

    def fetch(self, array: Any) -> Callable[[], np.ndarray]:
        """What is on the host."""
        return lambda: array

    def to(self, device: str) -> NoModel:
        """Itself."""
        return self


def no_model() -> Predictor:
    """The default weights without their model, and without what looks at each tile."""
    info = info_of(resolve())
    assert info is not None
    return Predictor(NoModel(len(info.genes)), replace(info, ood=None))


def write_noise(path: Path, tiles: int) -> None:
    """A picture that holds a grid of so many small tiles, or a few more."""
    from PIL import Image

    side = (math.isqrt(tiles - 1)) * SMALL_STRIDE_PX + SMALL_PX
    Image.fromarray(np.random.default_rng(0).integers(90, 250, (side, side, 3), np.uint8)).save(path)


def reduce(grid: np.ndarray, pictures: list[np.ndarray]) -> tuple[np.ndarray, list[np.ndarray]]:
    """The next level of a pyramid, as a grid of numbers and the picture of each number."""
    count = -(-len(grid) // FACTOR)
    padded = np.zeros((count * FACTOR,) * 2, int)
    padded[: len(grid), : len(grid)] = grid
    groups = padded.reshape(count, FACTOR, count, FACTOR).swapaxes(1, 2).reshape(-1, FACTOR**2)
    kinds, numbers = np.unique(groups, axis=0, return_inverse=True)
    part = TILE // FACTOR
    small = [
        picture.reshape(part, FACTOR, part, FACTOR, 3).mean(axis=(1, 3)).round().astype(np.uint8)
        for picture in pictures
    ]
    rows = [[np.concatenate([small[i] for i in row], axis=1) for row in kind.reshape(FACTOR, -1)] for kind in kinds]
    return numbers.reshape(count, count), [np.concatenate(row) for row in rows]


def jpeg(picture: np.ndarray) -> bytes:
    from PIL import Image

    content = io.BytesIO()
    Image.fromarray(picture).save(content, "JPEG", quality=85, subsampling="4:2:0", optimize=True)
    return content.getvalue()


def run_slide(job: dict[str, Any]) -> dict[str, Any]:
    """One end-to-end run in this process, and the seconds of its steps."""
    import anndata  # noqa: F401
    import h5py  # noqa: F401
    import skimage.filters
    import skimage.measure  # noqa: F401
    import torch.utils.data
    from huggingface_hub.utils import tqdm  # noqa: F401

    seconds = dict.fromkeys((*STEPS, "tiles"), 0.0)
    batches: list[tuple[float, float, int]] = []

    def timed(owner: Any, name: str, step: str) -> None:
        call = getattr(owner, name)

        @functools.wraps(call)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                seconds[step] += time.perf_counter() - start

        setattr(owner, name, wrapper)

    fill = slides._Table.fill

    def watched(table: Any, predictor: Any, *args: Any) -> None:
        begin = predictor._begin

        def timed_begin(pixels: np.ndarray, *args: Any) -> Any:
            start = time.perf_counter()
            wait = begin(pixels, *args)

            def timed_wait() -> Any:
                said = wait()
                batches.append((start, time.perf_counter(), len(pixels)))
                return said

            return timed_wait

        predictor._begin = timed_begin
        start = time.perf_counter()
        fill(table, predictor, *args)
        seconds["first"] = batches[0][0] - start
        seconds["tiles"] = time.perf_counter() - batches[0][0]

    # the steps have no switch to be timed by, and a copy of the pipeline would measure the copy
    slides._Table.fill = watched  # type: ignore[method-assign]
    timed(slides, "open_slide", "open")
    timed(Slide, "overview", "overview")
    timed(slides, "_choose", "tissue")

    torch.set_num_threads(job["threads"])
    start = time.perf_counter()
    predictor = load(device=job["device"]) if job["model"] else no_model()
    seconds["open"] = time.perf_counter() - start
    options = {"stride_um": job["stride"], "batch_size": job["batch_size"], "workers": job["workers"], **job["options"]}
    result = predictor.slide(job["slide"], **options)
    written = time.perf_counter()
    result.write(job["out"])
    end = time.perf_counter()
    seconds["write"] = end - written
    seconds["compute"] = sum(stop - begin for begin, stop, _ in batches)
    seconds["wait"] = seconds["tiles"] - seconds["compute"]
    seconds["other"] = end - start - sum(seconds[step] for step in STEPS)
    tiles = len(result)
    return {
        "tiles": tiles,
        "failed": len(result.failed),
        "scale": f"{result.slide.mpp:g} um/px from {result.slide.scale_source}",
        "h5ad": Path(job["out"]).stat().st_size,
        "total": end - start,
        "whole": tiles / (end - start),
        "stream": tiles / seconds["tiles"],
        "seconds": {step: seconds[step] for step in STEPS},
        # of this process; its workers are watched from outside
        "main": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform != "darwin" else 1024**2),
    }


def in_child(job: dict[str, Any], script: str = __file__) -> dict[str, Any]:
    """What a script prints of a job, here `run_slide`, in a fresh process, and the memory of it and its workers."""
    command = [sys.executable, script, "--child", json.dumps(job)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    pss, highest = 0.0, {}
    while True:
        try:
            output, _ = child.communicate(timeout=SAMPLE_S)
            break
        except subprocess.TimeoutExpired:
            total = 0.0
            for pid in family(child.pid):
                with contextlib.suppress(OSError, StopIteration):
                    highest[pid] = max(highest.get(pid, 0.0), proc_mib(pid, "status", "VmHWM:"))
                    total += proc_mib(pid, "smaps_rollup", "Pss:")
            pss = max(pss, total)
    if child.returncode:
        sys.exit(f"The run of {job['slide']} ended with {child.returncode}.")
    result = json.loads(output.splitlines()[-1])
    others = sum(value for pid, value in highest.items() if pid != child.pid)
    return {**result, "pss": pss or None, "most": result["main"] + others, "processes": max(1, len(highest))}


def family(pid: int) -> Iterator[int]:
    """A process and its descendants, where there is /proc."""
    yield pid
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    known = {pid}
    while new := {child for child, parent in parents.items() if parent in known} - known:
        yield from new
        known |= new


def proc_mib(pid: int, file: str, key: str) -> float:
    lines = Path(f"/proc/{pid}/{file}").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1]) / 1024


def model_rate(model: torch.nn.Module, x: torch.Tensor, at_least: float) -> float:
    """Tiles a second of the model alone, over as many batches as fill ``at_least`` seconds."""
    done = 0
    with torch.inference_mode():
        model(x).cpu()
        start = time.perf_counter()
        while (elapsed := time.perf_counter() - start) < at_least or not done:
            model(x).cpu()
            done += len(x)
    return done / elapsed


def measure(cases: list[Case], args: argparse.Namespace, folder: Path) -> None:
    """Run the slides in turns, the model alone before and after each."""
    model = load(device=args.device).model
    x = torch.randn(args.batch_size, 3, 224, 224, device=args.device)
    for done in range(args.rounds):
        before = model_rate(model, x, args.seconds)
        for case in cases:
            progress(f"round {done + 1} of {args.rounds}: {case.name}")
            job = {name: getattr(args, name) for name in ("device", "threads", "batch_size", "workers")}
            job |= {"slide": str(case.path), "stride": case.stride, "out": str(folder / f"{case.name}.h5ad")}
            job |= {"model": True, "options": {}}
            case.runs.append(in_child(job))
            after = model_rate(model, x, args.seconds)
            case.model.append((before + after) / 2)
            before = after


def measure_trip(slide: Path, args: argparse.Namespace, folder: Path, goal: int, options: dict[str, Any]) -> None:
    """The trip of tiles without a model, and its memory."""
    job = {name: getattr(args, name) for name in ("device", "threads", "batch_size", "workers")}
    out = folder / "trip.h5ad"
    options |= {"resume": str(folder / "trip.h5ad.partial")}
    run = in_child(job | {"slide": str(slide), "stride": None, "out": str(out), "model": False, "options": options})
    seconds = run["seconds"]
    tiles, write = run["tiles"], seconds["write"]
    trip = run["total"] - write
    print(f"{tiles} tiles; {run['failed']} failed; .h5ad of {run['h5ad'] / 1e6:.0f} MB")
    print(f"read, predicted by no model and kept: {trip:.1f} s, {tiles / trip:.0f} tiles/s")
    print(f"written: {write:.1f} s, {tiles / write:.0f} tiles/s; all: {tiles / run['total']:.0f} tiles/s")
    pss = "n/a" if run["pss"] is None else f"{run['pss']:.0f}"
    print(f"memory {pss} MiB, at most {run['most']:.0f} MiB in {run['processes']} processes, goal {goal} MiB")


def print_results(cases: list[Case]) -> None:
    print(
        f"\n{'':8}  tiles    model    whole  of model   stream  of model  memory MiB  at most"
        "   (tiles/s; the limit is the model)"
    )
    for case in cases:
        run = case.runs[0]
        pss = "n/a" if run["pss"] is None else f"{case.median(lambda run: run['pss']):.0f}"
        print(
            f"{case.name:8}  {run['tiles']:5}  {statistics.median(case.model):7.2f}"
            f"  {case.median(lambda run: run['whole']):7.2f}  {case.of_model('whole'):8.1%}"
            f"  {case.median(lambda run: run['stream']):7.2f}  {case.of_model('stream'):8.1%}"
            f"  {pss:>10}  {max(run['most'] for run in case.runs):7.0f}"
        )
    print(f"\n{'seconds':8}  {'total':>7}  " + "  ".join(f"{step:>8}" for step in STEPS))
    for case in cases:
        total = case.median(lambda run: run["total"])
        steps = [case.median(lambda run, step=step: run["seconds"][step]) for step in STEPS]  # type: ignore[misc]
        print(f"{case.name:8}  {total:7.2f}  " + "  ".join(f"{value:8.2f}" for value in steps))
        print(f"{'':8}  {'':7}  " + "  ".join(f"{value / total:8.1%}" for value in steps))

    print()
    for case in cases:
        ratios = [run["whole"] / model for run, model in zip(case.runs, case.model, strict=True)]
        spread = f"rounds {min(ratios):.0%} to {max(ratios):.0%}"
        print(f"{case.name}: {case.of_model('whole'):.1%} of the model alone, goal {GOAL:.0%} ({spread})")
    for case in cases:
        if case.name == "pyramid":
            most = max(run["most"] for run in case.runs)
            print(f"pyramid: at most {most:.0f} MiB in {case.runs[0]['processes']} processes, goal {GOAL_MIB} MiB")


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=usable_cores(), help="CPU threads, by default the usable cores")
    parser.add_argument("--side", type=int, help="side of the pyramid in pixels, by default 100000; 0 for none")
    parser.add_argument("--blocks", type=int, help="pieces of tissue in it, by default 8; each has about 75 tiles")
    parser.add_argument("--batch-size", type=int, help="tiles per forward pass, by default 32")
    parser.add_argument("--workers", type=int, help="processes that read tiles, by default as the package chooses")
    parser.add_argument("--rounds", type=int, help="how often the slides take turns, by default 3")
    parser.add_argument("--stride", type=float, help="distance of the tiles of the first slide in um, by default 35")
    parser.add_argument("--seconds", type=float, help="the least time of one measurement of the model, by default 8")
    parser.add_argument("--keep", type=Path, metavar="FILE", help="keep the pyramid as this .tif, or use it if there")
    trip = parser.add_mutually_exclusive_group()
    trip.add_argument("--tiles", type=int, metavar="N", help="the trip alone, of so many tiles of a plain picture")
    trip.add_argument("--features", action="store_true", help="the trip alone, of the pyramid with features")
    parser.add_argument("--quick", action="store_true", help="a small pyramid, few tiles and one round")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    defaults: list[tuple[str, Any, Any]] = [
        ("side", 100_000, 10_000),
        ("blocks", 8, 1),
        ("batch_size", 32, 8),
        ("rounds", 3, 1),
        ("stride", 35.0, 200.0),
        ("seconds", 8.0, 0.0),
    ]
    for name, full, quick in defaults:
        if getattr(args, name) is None:
            setattr(args, name, quick if args.quick else full)
    if min(args.threads, args.blocks, args.batch_size, args.rounds, args.stride) <= 0 or (args.workers or 0) < 0:
        parser.error("threads, blocks, batch size, rounds and stride must be positive, and workers not negative")
    if args.side and args.side < FACTOR * TILE:
        parser.error(f"the pyramid holds pieces of {FACTOR * TILE} px; give a larger side, or 0 for no pyramid")
    if (args.features and not args.side) or (args.tiles is not None and args.tiles < 1):
        parser.error("the trip needs tiles, or a side of the pyramid")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    if args.child:
        print(json.dumps(run_slide(json.loads(args.child))))
        return
    torch.set_num_threads(args.threads)
    workers = "any" if args.workers is None else args.workers
    print(
        f"torch {torch.__version__}, {processor_name(args.device)}, {args.device}, {args.threads} CPU threads,"
        f" batch {args.batch_size}, {workers} workers, load average {os.getloadavg()[0]:.2f}"
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if args.tiles:
            write_noise(folder / "noise.png", args.tiles)
            small = {"mpp": MPP, "patch_um": SMALL_PX * MPP, "stride_um": SMALL_STRIDE_PX * MPP, "min_tissue": 0}
            measure_trip(folder / "noise.png", args, folder, GOAL_MANY_MIB, small | {"force_scale": True})
            return
        cases = [Case("cmu", SVS, args.stride)]
        if args.side:
            pyramid = args.keep or folder / "pyramid.tif"
            if not pyramid.exists():
                start = time.perf_counter()
                write_pyramid(pyramid, args.side, args.blocks)
                progress(f"made the pyramid in {time.perf_counter() - start:.1f} s")
            with open_slide(pyramid) as slide:
                levels = ", ".join(f"{downsample:g}" for downsample in slide.downsamples)
                megabytes = pyramid.stat().st_size / 1e6
                print(f"pyramid: {slide.size[0]} x {slide.size[1]} px, {megabytes:.0f} MB, levels 1:{levels}")
            if args.features:
                measure_trip(pyramid, args, folder, GOAL_MIB, {"features": True})
                return
            cases.append(Case("pyramid", pyramid, PYRAMID_STRIDE))
        measure(cases, args, folder)
    for case in cases:
        run = case.runs[0]
        print(f"{case.name}: {run['scale']}; {run['failed']} tiles failed; .h5ad of {run['h5ad'] / 1e6:.1f} MB")
    print_results(cases)


if __name__ == "__main__":
    main()
