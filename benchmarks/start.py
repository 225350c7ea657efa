"""Where the time to the first prediction goes, in seconds of CPU, which other programs disturb less than a clock.

    python benchmarks/start.py
    python benchmarks/start.py --rounds 1

A round is a process for each row of the first table and one for the second, medians over rounds. Besides seconds each
row says how many imports of torch it is worth, which carries over to other machines. Files are in the page cache.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PATCH = ROOT / "tests" / "fixtures" / "patches" / "patch_0.png"
COMMANDS = {
    "import torch": ["-c", "import torch"],
    "import torch, timm": ["-c", "import torch, timm"],
    "tcgn --help": ["-m", "tcgn_hub.cli.main", "--help"],
    "tcgn-predict --help": ["-m", "tcgn_hub.cli.predict", "--help"],
    "tcgn-predict patch.png": ["-m", "tcgn_hub.cli.predict", str(PATCH)],
}
PARTS = f"""
import json, time
parts, last = {{}}, 0.0
def part(name):
    global last
    now = time.process_time()
    parts[name], last = now - last, now
from tcgn_hub.text import on_command_line
on_command_line.set(True)
import numpy
from tcgn_hub.cli import predict
from tcgn_hub.prediction import predictor
from tcgn_hub.weights.hub import resolve
part("Python, NumPy, this package")
resolve()
part("manifest, sha256")
import torch
part("torch")
import timm
part("timm, the architecture")
import tcgn_hub.prediction.backends.torch
loaded = predictor.load()
part("the model and its weights")
for name in ("the first patch", "another patch"):
    loaded.patches([{str(PATCH)!r}], progress=False)
    part(name)
print(json.dumps(parts))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    whole: dict[str, list[float]] = {name: [] for name in COMMANDS}
    parts: dict[str, list[float]] = {}
    for _ in range(args.rounds):
        for name, command in COMMANDS.items():
            whole[name].append(run(command)[0])
        for name, seconds in json.loads(run(["-c", PARTS])[1]).items():
            parts.setdefault(name, []).append(seconds)
    torch = statistics.median(whole["import torch"])
    for table in (whole, parts):
        print(f"\n{'':30}{'s':>7}{'from':>7}{'to':>7}{'/ torch':>9}")
        for name, seconds in table.items():
            middle = statistics.median(seconds)
            print(f"{name:30}{middle:7.2f}{min(seconds):7.2f}{max(seconds):7.2f}{middle / torch:9.2f}")


def run(command: list[str]) -> tuple[float, str]:
    """Seconds of CPU that a process of Python's took, and what it printed."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, *command], stdout=subprocess.PIPE, check=True, text=True, env=env)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.stdout


if __name__ == "__main__":
    main()
