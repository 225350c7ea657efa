r"""What a user gets who gives no options, beside what the machine can do, and beside LazySlide, in one run.

    python benchmarks/user.py                 # tens of minutes on a CPU
    python benchmarks/user.py --quick         # does the script work? its numbers mean nothing
    python benchmarks/user.py --device cuda --stride 8 --workers 8

Rows. ``model`` is the fused model alone on input that is ready, in each mode of ``benchmarks/model.py``. The others
work on ``examples/cmu_small_region.svs``, each in a process of its own, from its start to its end, with all that is
written:

    tcgn predict          ``tcgn predict SLIDE -o out.h5ad`` with ``--stride-um``, for many tiles, and ``--device``; no
                          other option. A compiled model was kept before, and is used where that pays.
    tcgn predict, first   The same on a CPU where nothing was kept, as of who predicts a first slide.
    tcgn predict, plain   The same with ``--precision float32 --compile off``.
    LazySlide, tcgn_hub   `open_wsi`, `find_tissues`, `tile_tissues` and `tile_prediction(wsi, tcgn_hub.load())`, then
                          the store is written. It has as many tiles as ``tcgn predict``, of the same side, and the
                          compiled model, where one was kept, which `load` has to be told of (``compile="on"``).
    LazySlide, ViT-L      Likewise `feature_extraction` by timm's vit_large_patch16_224 with random weights, the class
                          of network that its users run. On a CPU it has few tiles, for it takes a second for each.

LazySlide is given the batch size of ``tcgn predict``, and ``--workers`` to read tiles; all else of it is its default,
by which ViT-L is float32 and not compiled. Where it is not installed (``pip install lazyslide``) its rows are left out.

Columns, medians over rounds in which the rows take turns.
    tiles      Tiles that were predicted.
    whole      Tiles/s of the whole process, Python's start, imports and compilation included. Where ViT-L has few
               tiles, it is what as many as of the others would give at the rate of its streaming.
    streaming  Tiles/s from the end of the first batch to that of the last; of a model alone, its images/s.
    of limit   Images/s over what the arithmetic would reach at the rate of a large matrix product in the same dtype.
    of model   ``streaming`` over the images/s of the fastest mode of the model just before and after.
    memory     MiB. Of a process the sum of the highest resident memory of it and its workers; of a model alone its
               weights and the most that torch's allocator held during a call.
    GPU        MiB of a process, the most that torch's allocator held on CUDA.

On a CPU the model is compiled before all rounds, which is told by itself. It is kept in a folder of this run.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import wraps
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

DEFAULT, FIRST, PLAIN = "tcgn predict", "tcgn predict, first", "tcgn predict, plain"
SAME, ENCODER = "LazySlide, tcgn_hub", "LazySlide, ViT-L"
OPTIONS = {DEFAULT: [], FIRST: [], PLAIN: ["--precision", "float32", "--compile", "off"]}
VIT = "vit_large_patch16_224"
FEWER = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)  # of the stride, until LazySlide has as many tiles
BATCHES = 4  # the least of a run, for there to be a rate of streaming
GOALS = {PLAIN: 1.6, SAME: 1.0, ENCODER: 15.0}
GOAL_OF_MODEL, GOAL_OF_CPU = 0.85, 60.0


@dataclass
class Command:
    """What a user runs, and what its rounds measured."""

    name: str
    runs: list[dict[str, Any]] = field(default_factory=list)

    def median(self, key: str) -> float:
        """Of a value over the rounds."""
        return statistics.median(run[key] for run in self.runs)


# ------------------------------------------------------------------------------------------------------ in a child


def run_child(job: dict[str, Any]) -> dict[str, Any]:
    """A job in this process: its tiles, the rate of those after the first batch, and its memory."""
    os.environ["HF_ASSETS_CACHE"] = job["kept"]
    if job["name"] in OPTIONS:
        done = predict(job)
    else:
        warnings.simplefilter("ignore")  # LazySlide adds genes column by column, of which pandas warns each time
        done = lazyslide(job)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform != "darwin" else 1024**2)
    torch = sys.modules.get("torch")
    gpu = torch.cuda.max_memory_allocated() / 2**20 if torch and torch.cuda.is_available() else None
    between = done[-1][0] - done[0][0]
    later = sum(count for _, count in done[1:])
    return {
        "tiles": sum(count for _, count in done),
        "streaming": later / between if between else math.nan,
        "main": peak,  # of this process; its workers are watched from outside
        "gpu": gpu,
    }


def counted(progress: type, count: Callable[..., int | None]) -> list[tuple[float, int]]:
    """Moments at which a progress bar was told of tiles, and of how many; filled while something runs."""
    told: list[tuple[float, int]] = []
    update = progress.update  # type: ignore[attr-defined]

    @wraps(update)
    def watched(*args: Any, **options: Any) -> Any:
        if tiles := count(*args, **options):
            told.append((time.perf_counter(), tiles))
        return update(*args, **options)

    progress.update = watched  # type: ignore[attr-defined]
    return told


def predict(job: dict[str, Any]) -> list[tuple[float, int]]:
    """Tcgn predict, as the command line runs it."""
    from tcgn_hub.cli.main import main as tcgn
    from tcgn_hub.progress import Progress

    done = counted(Progress, lambda bar, count=1: count if bar.unit == "tile" else None)
    where = ["-o", job["out"] + ".h5ad", "--stride-um", str(job["stride"]), "--device", job["device"]]
    code = tcgn(["predict", job["slide"], *where, *OPTIONS[job["name"]]])
    if code:
        sys.exit(f"tcgn predict ended with {code}.")
    return done


def lazyslide(job: dict[str, Any]) -> list[tuple[float, int]]:
    """LazySlide from opening a slide to writing what was predicted."""
    import lazyslide as zs
    from rich.progress import Progress
    from wsidata import open_wsi

    done = counted(Progress, lambda bar, task, *, advance=None, **_: advance)
    wsi = open_wsi(job["slide"], store=None)
    zs.pp.find_tissues(wsi)
    for share in FEWER:
        stride = max(1, round(share * job["stride"] / job["mpp"]))
        zs.pp.tile_tissues(wsi, job["side"], mpp=job["mpp"], stride_px=stride, background_fraction=0.5)
        if len(wsi.shapes["tiles"]) >= job["tiles"]:
            break
    wsi.shapes["tiles"] = wsi.shapes["tiles"].iloc[: job["tiles"]]
    options = {"batch_size": job["batch_size"], "num_workers": job["workers"], "device": job["device"], "pbar": False}
    if job["name"] == SAME:
        import tcgn_hub

        zs.tl.tile_prediction(wsi, tcgn_hub.load(device=job["device"], compile=job["compile"]), **options)
    else:
        zs.tl.feature_extraction(wsi, VIT, load_kws={"pretrained": False}, **options)
    wsi.write(job["out"] + ".zarr")
    return done


# -------------------------------------------------------------------------------------------------------- in turns


def in_child(job: dict[str, Any], tiles: int) -> dict[str, Any]:
    """A job in a fresh process, and its tiles/s; of fewer than all tiles what all of them would take."""
    import slide

    start = time.perf_counter()
    run = slide.in_child(job, __file__)
    seconds = time.perf_counter() - start
    more = max(0, tiles - run["tiles"])
    run["whole"] = (run["tiles"] + more) / (seconds + (more / run["streaming"] if more else 0))
    return {**run, "seconds": seconds}


def measure(args: argparse.Namespace, folder: Path) -> None:
    """Run everything in turns, and print it."""
    import model
    import torch
    from machine import processor_name, progress
    from slide import MPP, SVS

    from tcgn_hub import load
    from tcgn_hub.errors import DeviceError

    device = torch.device(args.device)
    predictor = load(device=args.device)
    batch = args.batch_size or predictor.backend.batch_size
    side = round(predictor.info.patch_um / MPP)
    job = {"slide": str(SVS), "stride": args.stride, "device": args.device, "workers": args.workers, "mpp": MPP}
    job |= {"side": side, "batch_size": batch, "compile": "auto"}
    print(
        f"torch {torch.__version__}, {processor_name(args.device)}, {device}, {torch.get_num_threads()} CPU threads,"
        f" batch {batch}, load average {os.getloadavg()[0]:.2f}"
    )

    def run(name: str, round_: str, tiles: int, most: int = 0) -> dict[str, Any]:
        progress(f"{round_}: {name}")
        own = {"name": name, "out": str(folder / f"{round_} {name}"), "tiles": min(tiles, most or tiles)}
        own["kept"] = str(folder / ("nothing" if name == FIRST else "kept"))
        if most:
            own["batch_size"] = max(1, min(batch, most // BATCHES))
        return in_child({**job, **own}, tiles)

    commands = [Command(DEFAULT), Command(PLAIN)]
    if args.compile and device.type == "cpu":
        progress("compiling, as tcgn predict --compile on")
        start = time.perf_counter()
        try:
            load(device=args.device, compile="on")
        except DeviceError as err:
            print(f"{err} What it does not need is measured.")
        else:
            print(f"compiled once, in {time.perf_counter() - start:.0f} s, and kept")
            commands.insert(1, Command(FIRST))
            job["compile"] = "on"
    if find_spec("lazyslide"):
        commands += [Command(SAME), Command(ENCODER)]
    else:
        print("LazySlide is not installed (pip install lazyslide), so that its rows and goals are left out.")

    torch._dynamo.config.recompile_limit = 64
    torch._inductor.config.freezing = True
    modes = ("eager", "compiled") if args.compile else ("eager",)
    rows = [model.Row(model.FUSED, mode, dtype, batch) for mode in modes for dtype in model.DTYPES]
    models = model.make_models({model.FUSED}, device)
    flops = model.flops_per_image(models[model.FUSED], device, False)
    model.prepare(rows, models, device)
    alive = [row for row in rows if row.call is not None]
    slow = []
    if device.type == "cuda":
        slow = [model.Row(model.FUSED, "eager", "float32", 8)]
        model.prepare(slow, model.make_models({model.FUSED}, torch.device("cpu")), torch.device("cpu"))

    rates: dict[str, list[float]] = {row.name: [] for row in alive}
    on_cpu, products = [], []

    def look() -> None:
        """The models alone, and what they could reach."""
        for row in alive:
            rates[row.name].append(row.batch / model.seconds_of(row.call, device, args.seconds))
        on_cpu.extend(row.batch / model.seconds_of(row.call, torch.device("cpu"), args.seconds) for row in slow)
        products.append(model.gemm_rates(device, (1024,) if args.quick else (1024, 1568, 2352), 3))

    tiles = 0
    look()
    for number in range(args.rounds):
        for command in commands:
            most = args.encoder_tiles if command.name == ENCODER else 0
            command.runs.append(run(command.name, f"round {number + 1} of {args.rounds}", tiles, most))
            tiles = tiles or command.runs[0]["tiles"]
        look()

    fastest = max(alive, key=lambda row: statistics.median(rates[row.name]))
    around = rates[fastest.name]
    for command in commands:
        for measured, before, after in zip(command.runs, around, around[1:], strict=False):
            measured["of model"] = measured["streaming"] / ((before + after) / 2)
            measured["whole of model"] = measured["whole"] / ((before + after) / 2)
    limits = {dtype: statistics.median(moment[dtype] for moment in products) for dtype in model.DTYPES}
    print(
        "matrix products: "
        + ", ".join(f"{dtype} {rate / 1e9:.0f} GFLOP/s" for dtype, rate in limits.items())
        + f"; an image is {flops / 1e9:.2f} GFLOPs\n"
    )
    print_rows(rows, rates, commands, {dtype: rate / flops for dtype, rate in limits.items()}, fastest)
    bf16 = next((row for row in alive if (row.mode, row.dtype) == ("compiled", "bf16")), None)
    faster = statistics.median(rates[bf16.name]) / statistics.median(on_cpu) if bf16 and on_cpu else None
    print_goals(commands, fastest, faster)


def print_rows(
    rows: list[Any],
    rates: dict[str, list[float]],
    commands: list[Command],
    limits: dict[str, float],
    fastest: Any,
) -> None:
    width = 30
    print(f"{'':{width}}  tiles    whole  streaming  of limit  of model  memory    GPU")
    best = statistics.median(rates[fastest.name])
    for row in rows:
        name = f"model {row.mode} {row.dtype}"
        if row.name not in rates:
            print(f"{name:{width}}  failed: {row.error}")
            continue
        rate = statistics.median(rates[row.name])
        memory = row.memory / 2**20
        limit, share = rate / limits[row.dtype], rate / best
        print(f"{name:{width}}  {'':5}  {'':7}  {rate:9.2f}  {limit:8.0%}  {share:8.0%}  {memory:6.0f}")
    for command in commands:
        gpu = "" if command.runs[0]["gpu"] is None else f"{command.median('gpu'):.0f}"
        print(
            f"{command.name:{width}}  {command.runs[0]['tiles']:5}  {command.median('whole'):7.2f}"
            f"  {command.median('streaming'):9.2f}  {'':8}  {command.median('of model'):8.0%}"
            f"  {max(run['most'] for run in command.runs):6.0f}  {gpu:>5}"
        )


def print_goals(commands: list[Command], fastest: Any, faster: float | None) -> None:
    """Each goal, what was reached in the whole process and while streaming, and the least and most of the rounds."""
    lines = []
    for ours in commands:
        if ours.name not in (DEFAULT, FIRST):
            continue
        shares = [[run[key] for run in ours.runs] for key in ("whole of model", "of model")]
        lines.append((f"{ours.name} / model {fastest.mode} {fastest.dtype}", *shares, GOAL_OF_MODEL))
        for other in commands:
            if other.name in GOALS:
                pairs = list(zip(ours.runs, other.runs, strict=True))
                ratios = [[mine[key] / theirs[key] for mine, theirs in pairs] for key in ("whole", "streaming")]
                lines.append((f"{ours.name} / {other.name}", *ratios, GOALS[other.name]))
    print(f"\n{'goals':43}  {'whole':>20}  {'streaming':>20}   goal  reached")
    for text, whole, streaming, goal in lines:
        names = {"whole": whole, "streaming": streaming}
        met = " and ".join(name for name, ratios in names.items() if statistics.median(ratios) >= goal) or "no"
        print(f"{text:43}  {spread(whole):>20}  {spread(streaming):>20}  {goal:4.2f}x  {met}")
    if faster is None:
        print(f"bf16 compiled on CUDA / eager on the CPU, goal {GOAL_OF_CPU:.0f}x: not measured, for it needs a GPU.")
    else:
        met = "reached" if faster >= GOAL_OF_CPU else "no"
        print(f"bf16 compiled on CUDA / eager float32 on the CPU: {faster:.0f}x, goal {GOAL_OF_CPU:.0f}x: {met}")


def spread(ratios: list[float]) -> str:
    return f"{statistics.median(ratios):.2f}x [{min(ratios):.2f}, {max(ratios):.2f}]"


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", help="by default CUDA where there is one, else the CPU")
    parser.add_argument("--stride", type=float, help="distance of tiles in um, by default 35: 517 tiles")
    parser.add_argument("--rounds", type=int, help="how often the rows take turns, by default 3")
    parser.add_argument("--seconds", type=float, help="the least time of one measurement of a model, by default 5")
    parser.add_argument(
        "--batch-size", type=int, help="of the models alone and of LazySlide, by default that of tcgn predict"
    )
    parser.add_argument("--workers", type=int, default=1, help="processes that read tiles for LazySlide, by default 1")
    parser.add_argument(
        "--encoder-tiles", type=int, help="tiles of ViT-L, 0 for all; by default 32 on a CPU and all on CUDA"
    )
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="leave out what is compiled")
    parser.add_argument("--quick", action="store_true", help="few tiles, one round and nothing compiled")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.child:
        return args
    for name, full, quick in (("stride", 35.0, 120.0), ("rounds", 3, 1), ("seconds", 5.0, 0.0)):
        if getattr(args, name) is None:
            setattr(args, name, quick if args.quick else full)
    if args.quick:
        args.compile = False
        args.batch_size = args.batch_size or 8
    if args.device is None:
        from tcgn_hub.devices import pick_device

        args.device = pick_device("auto")
    if args.encoder_tiles is None:
        args.encoder_tiles = BATCHES if args.quick else 0 if args.device.startswith("cuda") else 32
    if min(args.stride, args.rounds, args.batch_size or 1) <= 0 or min(args.workers, args.encoder_tiles) < 0:
        parser.error("stride, rounds and batch size must be positive, workers and tiles not negative")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    if args.child:
        print(json.dumps(run_child(json.loads(args.child))))
        return
    with tempfile.TemporaryDirectory() as name:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(Path(name) / "inductor")
        os.environ["HF_ASSETS_CACHE"] = str(Path(name) / "kept")
        measure(args, Path(name))


if __name__ == "__main__":
    main()
