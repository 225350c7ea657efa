"""What compiling the model costs and saves, in seconds of one core, and after how many patches it has paid.

    python benchmarks/compiling.py [--precisions bfloat16 float32] [--batches 8 16 32] [--rounds 7]

The default weights on the CPU. Each precision is compiled as `tcgn_hub.load(compile="on")` does, into a folder of its
own, and loaded from there. Then eager passes of each batch size and compiled ones take turns, round after round. Times
are those of the processor, of all threads and of the compiler together, for a machine that others use as well would
make seconds of the clock longer. The compiler uses one core, a pass all of them.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import huggingface_hub.constants
from machine import processor_name, progress

import tcgn_hub
from tcgn_hub.prediction.backends.torch import TorchBackend


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precisions", nargs="+", default=["bfloat16", "float32"])
    parser.add_argument("--batches", nargs="+", type=int, default=[8, 16, 32])
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    print(f"torch {torch.__version__}, {processor_name('cpu')}, {torch.get_num_threads()} threads")
    calls: dict[tuple[str, str, int], Callable[[], object]] = {}
    costs = {}
    pixels = np.random.default_rng(0).integers(0, 255, (max(args.batches), 224, 224, 3), dtype=np.uint8)
    for precision in args.precisions:
        eager = tcgn_hub.load(device="cpu", precision=precision, compile="off").backend
        assert isinstance(eager, TorchBackend)
        x = eager.prepare(pixels)
        calls |= {(precision, "eager", size): lambda on=eager, x=x[:size]: on.forward(x) for size in args.batches}
        with tempfile.TemporaryDirectory() as folder:
            huggingface_hub.constants.HF_ASSETS_CACHE = folder
            backends, costs[precision] = [], []
            for what in ("compiling", "loading"):
                progress(f"{precision}: {what}")
                began = seconds()
                backends.append(TorchBackend(eager.model, precision, compile="on", sha256=tcgn_hub.load().info.sha256))
                costs[precision].append(seconds() - began)
            size = sum(file.stat().st_size for file in Path(folder).rglob("*.pt2")) / 2**20
        compiled = backends[0]
        calls[precision, "compiled", compiled.batch_size] = lambda on=compiled, x=x[: compiled.batch_size]: on.forward(
            x
        )
        made, read = costs[precision]
        print(f"{precision}: compiling {made:.0f} s, loading {read:.1f} s, {size:.0f} MiB", flush=True)
    times: dict[tuple[str, str, int], list[float]] = {key: [] for key in calls}
    for number in range(args.rounds + 1):
        progress(f"round {number} of {args.rounds}")
        for key, call in calls.items():
            began = seconds()
            call()
            if number:  # the first one is slower
                times[key].append((seconds() - began) / key[2])
    print(f"\n{'':30}  ms of a core, a patch  [spread]")
    for (precision, mode, size), found in times.items():
        print(
            f"{f'{precision} {mode}, batch {size}':30}  {1000 * statistics.median(found):21.1f}"
            f"  [{1000 * min(found):.1f}, {1000 * max(found):.1f}]"
        )
    print()
    for precision in args.precisions:
        best = min(statistics.median(times[key]) for key in times if key[:2] == (precision, "eager"))
        saved = best - next(statistics.median(times[key]) for key in times if key[:2] == (precision, "compiled"))
        paid = costs[precision][0] / saved
        print(f"{precision}: compiling saves {1000 * saved:.1f} ms of a core a patch, and has paid after {paid:.0f}")


def seconds() -> float:
    """Of the processor, by this process and those that it has waited for."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


if __name__ == "__main__":
    main()
