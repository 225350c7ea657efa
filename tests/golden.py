"""The golden data: a checkpoint of the published layout, generated from the names of its parameters."""

import json
import math
import zlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

FOLDER = Path(__file__).parent / "fixtures" / "golden"
SVS = Path(__file__).resolve().parents[1] / "examples" / "cmu_small_region.svs"
PATCHES = [str(FOLDER.parent / "patches" / f"patch_{i}.png") for i in range(4)]


@cache
def expected() -> dict[str, torch.Tensor]:
    with torch.inference_mode(False):  # kept for tests that need gradients, whoever asks first
        return load_file(FOLDER / "expected.safetensors")


@cache
def grad_norms() -> dict[str, float]:
    return json.loads((FOLDER / "grad_norms.json").read_text())


def published_state_dict(num_classes: int = 785) -> dict[str, torch.Tensor]:
    shapes = json.loads((FOLDER / "authors_state_dict_shapes.json").read_text())
    shapes["head.2.weight"][0] = shapes["head.2.bias"][0] = num_classes
    return {name: filled(name, shape) for name, shape in shapes.items()}


def filled(name: str, shape: Sequence[int]) -> torch.Tensor:
    """What is drawn for a parameter of this name."""
    return torch.from_numpy(_fill(name, tuple(shape)))


def _fill(name: str, shape: tuple[int, ...], seed: int = 11) -> np.ndarray:
    leaf = name.rsplit(".", 1)[-1]
    if leaf == "num_batches_tracked":
        return np.zeros(shape, np.int64)
    r = np.random.RandomState((zlib.crc32(name.encode()) + seed) & 0xFFFFFFFF)
    n = np.asarray(r.standard_normal(shape))
    if leaf == "running_mean":
        value = 0.1 * n
    elif leaf == "running_var":
        value = 0.5 + r.random_sample(shape)
    elif leaf == "gamma":
        value = 0.3 + 0.3 * r.random_sample(shape)
    elif leaf.startswith("relative_pos"):
        value = 0.5 * n
    elif leaf == "p":
        value = 0.3 * n
    elif leaf == "bias":
        value = 0.05 * n
    elif len(shape) == 1:
        value = 0.8 + 0.4 * r.random_sample(shape)
    elif ".gc" in name:
        value = n / math.sqrt(shape[0])
    elif ".MHSA.q." in name or ".MHSA.k." in name:
        value = 0.5 * n / math.sqrt(math.prod(shape[1:]))
    else:
        value = n / math.sqrt(math.prod(shape[1:]))
    return np.asarray(value, np.float32)


def tissue(side: int) -> Image.Image:
    """A square of tissue that says nothing of its scale."""
    return Image.fromarray(np.asarray(Image.open(PATCHES[0]).convert("RGB").resize((side, side))))
