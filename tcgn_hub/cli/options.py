"""The options of all commands, each stated once, so that a word means the same wherever it stands.

An option that is not given is not passed on: the default is that of the Python API, which its help repeats.
"""

from __future__ import annotations

import argparse
import inspect
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import fields
from typing import Any

from tcgn_hub.training.recipe import TUNE, Recipe

__all__ = ["OPTIONS", "add", "add_recipe", "given", "recipe_of"]

_CHOICES = {"tune": TUNE}
_TYPES = {"int": int, "float": float, "str": str}


def _number(kind: type[int] | type[float], low: float, high: float = math.inf, *, above: bool = False) -> Callable:
    """What reads a finite number from ``low``, or above it, to ``high``."""

    def read(text: str) -> float:
        value = kind(text)
        if not (low < value if above else low <= value) or not value <= high or value == math.inf:
            least = f"above {low}" if above else f"at least {low}"
            raise argparse.ArgumentTypeError(f"{text} is not {least if high == math.inf else f'from {low} to {high}'}")
        return value

    read.__name__ = "number" if kind is float else "whole number"  # argparse names it where it cannot be read
    return read


_COUNT, _NOT_NEGATIVE, _ABOVE_ZERO = _number(int, 1), _number(int, 0), _number(float, 0, above=True)
_FLAG = {"action": "store_true", "default": None}

OPTIONS: dict[str, dict[str, Any]] = {
    # what is read
    "images": {
        "flags": ("images",),
        "nargs": "+",
        "help": "patches or slides: files, folders of them, or patterns such as '*.svs'",
    },
    "data": {
        "flags": ("data",),
        "nargs": "+",
        "help": "her2st or HEST folder, Space Ranger output folders, .h5ad files, a sample sheet (CSV: section,"
        " patient, data, image, mpp), a CSV of patches (with --expression), or a CSV of bulk measurements (slide,"
        " patient, genes)",
    },
    "sections": {"nargs": "+", "metavar": "NAME", "help": "only these sections (default: all)"},
    "expression": {"metavar": "FILE", "help": "expression table of a CSV of patches, a row a spot"},
    "mpp": {
        "type": _ABOVE_ZERO,
        "metavar": "UM",
        "help": "micrometres per pixel of all images (default: what each file says)",
    },
    "magnification": {"type": _ABOVE_ZERO, "metavar": "X", "help": "the same as a magnification: 10, 20, 40"},
    "patch_um": {
        "type": _ABOVE_ZERO,
        "metavar": "UM",
        "help": "side of a patch in micrometres (default: that of the training patches of the weights; with"
        " --magnification what that nominally was)",
    },
    "crop_px": {"type": _COUNT, "metavar": "N", "help": "side of a patch in pixels, where the scale is not known"},
    # weights, and where and how they compute
    "weights": {
        "metavar": "TAG|DIR|FILE",
        "help": "tag, hf-hub:ORG/NAME, model directory, or file of parameters; to predict also an .onnx file of `tcgn"
        " export`, and to train 'scratch' (default: the first tag of `tcgn weights list`)",
    },
    "device": {"help": "such as cpu or cuda (default: auto, which is cuda where there is one)"},
    "precision": {
        "choices": ("auto", "float32", "bfloat16", "float16"),
        "help": "of the products (default: auto, which is float32 to predict and bfloat16 to train)",
    },
    "backend": {
        "choices": ("torch", "onnx"),
        "help": "onnx needs no PyTorch, but weights that `tcgn export` wrote (default: onnx for FILE.onnx, else torch)",
    },
    "batch_size": {
        "type": _COUNT,
        "metavar": "N",
        "help": "patches at once (default: 32; in an exported file any number)",
    },
    "tta": {
        "type": _number(int, 1, 8),
        "metavar": "N",
        "help": "average over so many rotations and reflections, 1 to 8, and say how much they differ (default: 1)",
    },
    "workers": {
        "type": _NOT_NEGATIVE,
        "metavar": "N",
        "help": "processes that read tiles or prepare crops (default: 1 for slides, 0 to train)",
    },
    # genes
    "genes": {
        "metavar": "A,B|FILE|PANEL",
        "help": "genes: a list with commas, a file with one a line, or a panel of this package",
    },
    "hvg": {"type": _COUNT, "metavar": "N", "help": "the N genes that vary most on the training sections"},
    "significant_only": {**_FLAG, "help": "leave out genes not predicted better than chance on held-out tissue"},
    "top": {"type": _COUNT, "metavar": "K", "help": "patches: only the K genes of the highest values"},
    # slides
    "stride_um": {
        "type": _ABOVE_ZERO,
        "metavar": "UM",
        "help": "slides: distance of tiles in micrometres (default: their side)",
    },
    "spots": {"metavar": "FILE", "help": "predict these spots: tissue_positions, her2st selection, h5ad"},
    "min_tissue": {
        "type": _number(float, 0, 1),
        "metavar": "SHARE",
        "help": "least share of tissue in a tile, 0 to 1 (default: 0.5; 0: every tile)",
    },
    "max_pixels": {"type": _COUNT, "metavar": "N", "help": "largest picture to decode as a whole"},
    "tiles": {"type": _COUNT, "metavar": "N", "help": "slides: so many highest and lowest tiles (default: 4)"},
    # what is written
    "output": {"flags": ("-o", "--output"), "metavar": "FILE|DIR", "help": "where to write, see above"},
    "format": {
        "choices": ("table", "csv", "json", "h5ad", "parquet", "geojson"),
        "help": "default: by the suffix of -o; otherwise table for patches, h5ad for slides",
    },
    "features": {**_FLAG, "help": "keep the 1280 features of each tile, in an h5ad"},
    "plot": {"metavar": "GENE,...", "help": "maps of genes and of the tissue, PNG files beside the output"},
    "report": {**_FLAG, "help": "a self-contained HTML page beside the output"},
    "bulk": {"metavar": "FILE", "help": "one pseudo-bulk row per slide, CSV"},
    "npz": {**_FLAG, "help": "patches: the arrays too, beside the picture"},
    "occlusion": {**_FLAG, "help": "patches: check the maps by covering parts (slower)"},
    "fp16": {**_FLAG, "help": "ONNX: store weights in float16, compute in float32"},
    "int8": {**_FLAG, "help": "ONNX: multiply matrices in 8 bits"},
    "json": {**_FLAG, "help": "as JSON, with all that is known"},
    # training and measuring
    "split": {
        "metavar": "patient|section|none|FILE",
        "help": "what is held out together, or a splits.json (default: patient)",
    },
    "by": {"choices": ("patient", "section"), "help": "what is held out together (default: patient)"},
    "test": {"nargs": "+", "metavar": "NAME", "help": "patients or sections to measure on, and not to train on"},
    "folds": {"nargs": "+", "metavar": "NAME", "help": "only the folds of these patients or sections"},
    "final": {**_FLAG, "help": "then train on all sections, for weights that state these metrics"},
    "allow_seen": {
        "nargs": "+",
        "metavar": "NAME",
        "help": "sections to measure on although the weights or their parents have seen them; every table then says so",
    },
    "resume": {**_FLAG, "help": "continue the run in the output folder"},
    "cache": {"metavar": "DIR", "help": "keep the crops here for other runs on the same data"},
    "checkpoint_minutes": {
        "type": _ABOVE_ZERO,
        "metavar": "N",
        "help": "how often to save the state (default: 10)",
    },
    "metadata": {
        "metavar": "FILE",
        "help": "JSON of what else to state in config.json and the model card: panel, license, origin, training_data",
    },
    "seed": {"type": _NOT_NEGATIVE, "metavar": "N", "help": "decides all that is drawn at random (default: 0)"},
    # the page
    "host": {"help": "address to listen on (default: 127.0.0.1, only this machine)"},
    "port": {"type": _number(int, 0, 65535), "metavar": "N", "help": "default: 7860; 0: one that is free"},
    "max_mb": {"type": _COUNT, "metavar": "N", "help": "largest upload in megabytes (default: 200)"},
    # weights as files
    "tag": {"metavar": "TAG", "help": "what to call them (default: by the panel or the repository)"},
    "cache_dir": {"metavar": "DIR", "help": "where downloads are kept (default: below HF_HOME)"},
    "repo": {"metavar": "ORG/NAME", "help": "repository, made if there is none"},
    "private": {**_FLAG, "help": "make a new repository private"},
    "dry_run": {**_FLAG, "help": "check, and print card and entry; upload nothing"},
}
"""What `argparse` is told of each option; ``flags`` where they are not ``--name``."""


def add(parser: argparse._ActionsContainer, *names: str, required: bool = False) -> None:
    """Let a command, or a group of its options, take options of the table."""
    for name in names:
        stated = dict(OPTIONS[name])
        flags = stated.pop("flags", (f"--{name.replace('_', '-')}",))
        if required:
            stated["required"] = True
        parser.add_argument(*flags, **stated)


def given(args: argparse.Namespace, names: Iterable[str]) -> dict[str, Any]:
    """Those of some options that were given, by name."""
    return {name: value for name in names if (value := getattr(args, name, None)) is not None}


def add_recipe(parser: argparse.ArgumentParser) -> None:
    """An option for each field of a recipe, with its default and its description; those of the table as they are."""
    group = parser.add_argument_group("recipe")
    described = dict(re.findall(r"^    (\w+): (.*(?:\n      .*)*)", inspect.cleandoc(Recipe.__doc__ or ""), re.M))
    for field in fields(Recipe):
        if field.name in OPTIONS:
            add(group, field.name)
            continue
        flag = "--" + field.name.replace("_", "-")
        text = " ".join(described.get(field.name, "").split()).rstrip(".").replace("%", "%%")
        if field.type == "bool":
            group.add_argument(flag, action="store_true", default=None, help=text)
            continue
        kind = _TYPES[str(field.type).removesuffix(" | None")]
        group.add_argument(
            flag,
            type=kind,
            choices=_CHOICES.get(field.name),
            metavar=None if field.name in _CHOICES else kind.__name__.upper(),
            help=text + ("" if field.default is None else f" (default: {field.default})"),
        )


def recipe_of(args: argparse.Namespace) -> Recipe:
    """The recipe that was asked for.

    Raises:
        TrainingError: A value is out of its range.
    """
    stated = given(args, (field.name for field in fields(Recipe)))
    if stated.get("precision") == "auto":
        del stated["precision"]
    return Recipe(**stated)
