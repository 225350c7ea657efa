"""Speed and memory of a training epoch, beside the bare training step in the same run.

    python benchmarks/finetune.py                 # minutes on a CPU
    python benchmarks/finetune.py --quick         # does the script work? its numbers mean nothing
    python benchmarks/finetune.py --device cuda --spots 4096 --batch-size 128 --workers 8

The section is drawn: a picture with ``--spots`` spots and Poisson counts of 785 genes. Training starts from scratch.

Columns, medians over rounds.
    step       Patches/s of the bare step on one batch that is ready on the device: forward, backward, clipping, AdamW.
               It is the limit.
    epoch      Patches/s of the second epoch of `tcgn_hub.finetune`: reading cached crops, varying them, the steps, the
               moving average and the log.
    of step    ``epoch`` over ``step`` of the same round. The goal is 90 %.
    doubled    Seconds of an epoch with twice the spots over twice the seconds of one: 1 is linear.
    peak       MiB: highest resident memory of the process that ran `finetune`; on CUDA, of its allocator.

Each measurement is a process of its own.

What was tried to make a step in bfloat16 faster on a CPU, by scripts that were not kept: one thread, variants in turn,
seconds of CPU over those before, forward and backward in isolation at the shapes of the model unless said. A step at
batch 16 spends 23 % in the backward of convolutions, 12 % in GELU, 9 % in BatchNorm, 9 % in products of linear layers
and the rest in smaller parts, so that none of these makes it a third faster::

    fused AdamW                           0.21 of the optimiser's step, which is 3 % of the whole             kept
    1x1 convolutions as linear layers     0.97 to 1.13; 0.80 to 0.90 at 7x7, where little is spent            no
    depthwise 3x3 in float32              1.2 to 2.3                                                          no
    depthwise 7x7 in float32              0.80 to 0.90; 0.94 of a step, where rounds differ by 10 %           no
    LayerNorm in float32                  0.25 to 0.43 of its backward; 0.89 of a step, or 1.01 by minima     no
    softmax in float32                    0.6 to 1.5 of its forward, 1.5 to 3.4 of its backward               no
    GELU, BatchNorm in float32            0.87, 1.3, without the casts that come to it                        no
    malloc without mmap, with huge pages  0.99, 1.05, both 0.94 of a step, two rounds, within the noise       no
    masks of dropout from 16 bits each    0.44; a seed would then draw others                                 no
"""

from __future__ import annotations

import argparse
import csv
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spots", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--measure", choices=("step", "epoch"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.quick:
        args.spots, args.batch_size, args.rounds = 8, 4, 1
    if args.measure:
        print(json.dumps(step(args) if args.measure == "step" else epoch(args)))
        return
    rows = []
    for number in range(args.rounds):
        one = child(args, "step", args.spots)
        whole, twice = (child(args, "epoch", spots) for spots in (args.spots, 2 * args.spots))
        rows.append(
            {
                "step": one["rate"],
                "epoch": whole["rate"],
                "of step": 100 * whole["rate"] / one["rate"],
                "doubled": whole["rate"] / twice["rate"],
                "peak": whole["peak"],
            }
        )
        print(f"round {number + 1}: " + ", ".join(f"{key} {value:.2f}" for key, value in rows[-1].items()), flush=True)
    print(f"\n{args.spots} spots, batch {args.batch_size}, {args.device}, bfloat16")
    median = {key: statistics.median(row[key] for row in rows) for key in rows[0]}
    print("  step patches/s  epoch patches/s  of step  doubled  peak MiB")
    print(
        f"{median['step']:16.1f} {median['epoch']:16.1f} {median['of step']:6.1f} % {median['doubled']:7.2f}"
        f" {median['peak']:9.0f}"
    )


def child(args: argparse.Namespace, what: str, spots: int) -> dict[str, float]:
    """A measurement in a process of its own."""
    options = ["--spots", spots, "--batch-size", args.batch_size, "--workers", args.workers, "--device", args.device]
    done = subprocess.run(
        [sys.executable, __file__, "--measure", what, *map(str, options)], check=True, stdout=subprocess.PIPE, text=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def step(args: argparse.Namespace) -> dict[str, float]:
    """Patches/s of the bare training step."""
    import timm
    import torch

    import tcgn_hub  # noqa: F401

    torch.manual_seed(0)
    model = timm.create_model("tcgn_base", num_classes=785).to(args.device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.05, fused=True)
    x = torch.randn(args.batch_size, 3, 224, 224, device=args.device)
    y = torch.randn(args.batch_size, 785, device=args.device)
    steps = max(2, args.spots // args.batch_size)
    for number in range(steps + 1):
        if number == 1:
            synchronize(args.device)
            start = time.perf_counter()
        with torch.autocast(args.device, torch.bfloat16):
            predicted = model(x)
        (predicted.float() - y).square().mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    synchronize(args.device)
    return {"rate": steps * args.batch_size / (time.perf_counter() - start)}


def epoch(args: argparse.Namespace) -> dict[str, float]:
    """Patches/s of an epoch of finetune, and its memory."""
    import torch
    from PIL import Image

    import tcgn_hub
    from tcgn_hub.data.sections import Section

    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "section.png"
        Image.fromarray(rng.integers(0, 255, (3000, 3000, 3), dtype=np.uint8)).save(image, compress_level=0)
        genes = [f"G{i}" for i in range(785)]
        section = Section(
            name="drawn",
            patient="none",
            image=image,
            spots=[str(i) for i in range(args.spots)],
            xy=rng.uniform(100, 2900, (args.spots, 2)),
            genes=genes,
            counts=rng.poisson(2, (args.spots, 785)).astype(np.float32),
            mpp=0.687,
        )
        out = Path(folder) / "out"
        recipe = tcgn_hub.Recipe(weights="scratch", epochs=2, batch_size=args.batch_size)
        tcgn_hub.finetune(
            [section], genes=genes, split="none", out=out, recipe=recipe, device=args.device, workers=args.workers
        )
        with open(out / "history.csv", newline="") as handle:
            seconds = float(list(csv.DictReader(handle))[1]["seconds"])
    if args.device.startswith("cuda"):
        peak = torch.cuda.max_memory_allocated() / 2**20
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"rate": args.spots / seconds, "peak": peak}


def synchronize(device: str) -> None:
    import torch

    if device.startswith("cuda"):
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
