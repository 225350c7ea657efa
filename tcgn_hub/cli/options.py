"""The options of all commands, each stated once, so that a word means the same wherever it stands.

An option that is not given is not passed on: the default is that of the Python API, which its help repeats.
"""

from __future__ import annotations

import argparse
import inspect
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import Field, fields
from typing import Any, TypeVar

from tcgn_hub.training.recipe import TUNE, Steps

R = TypeVar("R", bound=Steps)  # a recipe

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


def _value(help: str, metavar: str | None = None, type: Callable | None = None, **more: Any) -> dict[str, Any]:
    return {"help": help, "metavar": metavar, "type": type, **more}


def _flag(help: str) -> dict[str, Any]:
    return {"help": help, "action": "store_true", "default": None}


def _number_or_file(text: str) -> int | str:
    return int(text) if text.isdecimal() else text


def _shard(text: str) -> tuple[int, int]:
    from tcgn_hub.prediction.cohort.shards import parse_shard

    try:
        return parse_shard(text)
    except ValueError as err:
        raise argparse.ArgumentTypeError(str(err)) from err


OPTIONS: dict[str, dict[str, Any]] = {
    # what is read
    "images": _value(
        "patches or slides: files, folders of them, or patterns such as '*.svs'", flags=("images",), nargs="+"
    ),
    "data": _value(
        "her2st or HEST folder, Space Ranger output folders, .h5ad files, stores of SpatialData, a sample sheet (CSV:"
        " section, patient, data, image, mpp, library, bin_um), a CSV of patches (with --expression), or a CSV of bulk"
        " measurements (slide, patient, genes)",
        flags=("data",),
        nargs="+",
    ),
    "cohort": _value("folder that slides were written to", "DIR", flags=("cohort",)),
    "result": _value("what `tcgn predict` wrote of a slide: .h5ad or .csv", flags=("result",)),
    "slide": _value("the slide, if it is neither beside the result nor in this folder", "FILE"),
    "tissue": _value(
        "slides, images, folders of them, or what `tcgn finetune` takes, of which counts are not looked at",
        flags=("data",),
        nargs="+",
    ),
    "teacher": _value(
        "frozen networks to learn from: a model of timm that has trained parameters, hf-hub:ORG/NAME, or local-dir:DIR",
        "NAME",
        nargs="+",
    ),
    "sections": _value("only these sections (default: all)", "NAME", nargs="+"),
    "expression": _value("expression table of a CSV of patches, a row a spot", "FILE"),
    "mpp": _value("micrometres per pixel of all images (default: what each file says)", "UM", _ABOVE_ZERO),
    "magnification": _value("the same as a magnification: 10, 20, 40", "X", _ABOVE_ZERO),
    "patch_um": _value(
        "side of a patch in micrometres (default: that of the training patches of the weights; with --magnification"
        " what that nominally was)",
        "UM",
        _ABOVE_ZERO,
    ),
    "strict": _flag("refuse patches without a scale, or smaller than those the weights were trained on"),
    "force_scale": _flag(
        "believe --mpp or --magnification although what the file states, or the distance of spots, is more than 40 %%"
        " off"
    ),
    "force": _flag("predict what shows no tissue, too"),
    "series": _value("which image of a file that holds several, 0 the first (default: the scan)", "N", _NOT_NEGATIVE),
    "crop_px": _value("side of a patch in pixels, where the scale is not known", "N", _COUNT),
    # weights, and where and how they compute
    "weights": _value(
        "tag, hf-hub:ORG/NAME, model directory, or file of parameters; to predict also an .onnx file of `tcgn export`,"
        " and to train 'scratch' (default: the first tag of `tcgn weights list`)",
        "TAG|DIR|FILE",
    ),
    "device": _value("such as cpu or cuda (default: auto, which is cuda where there is one)"),
    "precision": _value(
        "of the products (default: auto, which is bfloat16 to train, and to predict where the processor multiplies in"
        " it, else float32)",
        choices=("auto", "float32", "bfloat16", "float16"),
    ),
    "compile": _value(
        "compile the model, in minutes, and keep that for later runs; needs a C++ compiler (default: auto, which is on"
        " for so many patches that it pays)",
        choices=("auto", "on", "off"),
    ),
    "backend": _value(
        "onnx and openvino need no PyTorch, but weights that `tcgn export` wrote (default: onnx for FILE.onnx, else"
        " torch)",
        choices=("torch", "onnx", "openvino"),
    ),
    "batch_size": _value(
        "patches at once (default: to predict what suits the device, to train 32, to export any number)", "N", _COUNT
    ),
    "tta": _value(
        "average over so many rotations and reflections, 1 to 8, and say how much they differ (default: 1)",
        "N",
        _number(int, 1, 8),
    ),
    "workers": _value(
        "processes that read tiles or prepare crops (default: as slide and cores suggest; 0 to train)",
        "N",
        _NOT_NEGATIVE,
    ),
    # genes
    "genes": _value(
        "genes: a list with commas, a file with one a line, a panel of this package, or, of weights, all of theirs",
        "A,B|FILE|PANEL|all",
    ),
    "hvg": _value("the N genes that vary most on the training sections", "N", _COUNT),
    "significant_only": _flag("leave out genes not predicted better than chance on held-out tissue"),
    "min_quality": _value(
        "leave out patches and tiles of a lower quality, 0 to 1: out of focus, under ink, folded or without colour"
        " (default: 0, which leaves out none; below 0.5 they are called poor)",
        "Q",
        _number(float, 0, 1),
    ),
    "top": _value(
        "patches: only the K genes that are farthest from what is predicted for the training tissue", "K", _COUNT
    ),
    # slides
    "stride_um": _value("slides: distance of tiles in micrometres (default: half their side)", "UM", _ABOVE_ZERO),
    "spots": _value(
        "predict these spots: table of x and y, tissue_positions, her2st selection, h5ad, or store of SpatialData",
        "FILE",
    ),
    "library": _value("the section of an h5ad of spots, or the table of a SpatialData, that holds several", "NAME"),
    "bin_um": _value(
        "side in micrometres of the square spots that the cells of a SpatialData (Xenium) are binned to",
        "UM",
        _ABOVE_ZERO,
    ),
    "min_tissue": _value(
        "least share of tissue in a tile, 0 to 1 (default: 0.5; 0: every tile)", "SHARE", _number(float, 0, 1)
    ),
    "max_pixels": _value("largest picture to decode as a whole (default: 150000000)", "N", _COUNT),
    "tiles": _value("slides: so many highest and lowest tiles (default: 4)", "N", _COUNT),
    "used_spots": {
        **_value(
            "how many spots to use, spread over the section, or which: a .txt file with a name a line, or a table of"
            " their places (default: 30)",
            "N|FILE",
            _number_or_file,
        ),
        "flags": ("--spots",),
        "dest": "used_spots",
    },
    # what is written
    "output": _value("where to write, see above", "FILE|DIR", flags=("-o", "--output")),
    "format": _value(
        "default: by the suffix of -o; otherwise table for patches, h5ad for slides",
        choices=("table", "csv", "json", "h5ad", "parquet", "geojson", "zarr"),
    ),
    "image": _value(
        "what a .zarr (SpatialData) holds of the slide: its overview and path, or a copy of all pixels (default: link)",
        choices=("link", "copy"),
    ),
    "features": _flag("keep the 1280 features of each tile, in an h5ad or zarr"),
    "plot": _value("maps of genes, gene sets and the tissue, PNG files beside the output", "GENE|SET,..."),
    "signatures": _value(
        "score these gene sets, by their genes that are predicted better than chance given depth (pip install"
        " 'tcgn_hub[signatures]')",
        "FILE.gmt|FILE.json",
    ),
    "min_share": _value(
        "least share of a gene set that a score may rest on, 0 to 1, with 5 genes (default: 0.2)",
        "SHARE",
        _number(float, 0, 1),
    ),
    "map": _value(
        "what --plot and --report draw of a gene: its value, or given_depth, without what goes with the predicted depth"
        " (default: value)",
        choices=("value", "given_depth"),
    ),
    "report": _flag("a self-contained HTML page beside the output"),
    "bulk": _value("one pseudo-bulk row per slide, CSV", "FILE"),
    # many slides
    "scheduler": _value(
        "predict by the workers of this Dask cluster, which see slides and -o under the same paths",
        "tcp://HOST:PORT|FILE.json",
    ),
    "local_workers": _value("predict by a Dask cluster of N processes on this machine", "N", _COUNT),
    "shard": _value(
        "this is one of N processes that share the slides; it does its part first, then what others have not begun"
        " (default: by the array of jobs of SLURM, SGE or LSF, if this is one of its jobs)",
        "I/N",
        _shard,
    ),
    "retry_failed": _flag("try again slides that failed before"),
    "npz": _flag("patches: the arrays too, beside the picture"),
    "occlusion": _flag("patches: check the maps by covering parts (slower)"),
    "fp16": _flag("ONNX: store weights in float16, for size only"),
    "all_genes": {**_flag("all genes of the panel, not the first eight"), "flags": ("--genes",), "dest": "all_genes"},
    "json": _flag("as JSON, with all that is known"),
    # training and measuring
    "split": _value("what is held out together, or a splits.json (default: patient)", "patient|section|none|FILE"),
    "by": _value("what is held out together (default: patient)", choices=("patient", "section")),
    "test": _value("patients or sections to measure on, and not to train on", "NAME", nargs="+"),
    "train": _value(
        "patients or sections to fit the baselines on (default: what the weights have seen and is not measured on)",
        "NAME",
        nargs="+",
    ),
    "encoders": _value(
        "frozen networks to compare with, by ridge regression on their features: a model of timm, hf-hub:ORG/NAME, or"
        " local-dir:DIR",
        "NAME",
        flags=("--encoder",),
        dest="encoders",
        nargs="+",
    ),
    "encoder_um": _value(
        "sides in micrometres of the patches that frozen networks see, side by side (default: that of the weights)",
        "UM",
        _ABOVE_ZERO,
        nargs="+",
    ),
    "folds": _value("only the folds of these patients or sections", "NAME", nargs="+"),
    "final": _flag("then train on all sections, for weights that state these metrics"),
    "allow_seen": _value(
        "sections to measure on although the weights or their parents have seen them; every table then says so",
        "NAME",
        nargs="+",
    ),
    "resume": _flag("continue the run in the output folder, as it was asked for; no other option is needed"),
    "cache": _value("keep crops and features here for other runs on the same data", "DIR"),
    "checkpoint_minutes": _value("how often to save the state (default: 10)", "N", _ABOVE_ZERO),
    "metadata": _value(
        "JSON of what else to state in config.json and the model card: panel, license, origin, training_data", "FILE"
    ),
    "seed": _value("decides all that is drawn at random (default: 0)", "N", _NOT_NEGATIVE),
    "predictions": _value(
        "what other methods predict for the spots, a row a spot and a column a gene, to score beside the weights, or"
        " alone: .h5ad, .csv, .tsv or .parquet",
        "FILE",
        nargs="+",
    ),
    "label": _value("what to call each file of --predictions (default: its name)", "NAME", nargs="+"),
    "predictions_scale": _value(
        "log: logarithmic or standardised, in any units; linear: such as counts; once, or for each file (default: log)",
        choices=("log", "linear"),
        nargs="+",
    ),
    # the pages
    "host": _value("address to listen on (default: 127.0.0.1, only this machine)"),
    "port": _value("to listen on (default: demo 7860, view 0; 0: one that is free)", "N", _number(int, 0, 65535)),
    "no_browser": _flag("say the address, and open no browser"),
    "max_mb": _value("largest upload in megabytes (default: 200)", "N", _COUNT),
    # weights as files
    "tag": _value("what to call them (default: by the panel or the repository)", "TAG"),
    "cache_dir": _value("where downloads are kept (default: below HF_HOME)", "DIR"),
    "grep": _value("only genes with this in their symbol or another name of theirs", "TEXT"),
    "repo": _value("repository, made if there is none", "ORG/NAME"),
    "private": _flag("make a new repository private"),
    "dry_run": _flag(
        "check, and show what would be done: of slides scale, tissue, tiles, time and room; of a publication card and"
        " entry"
    ),
}
"""What `argparse` is told of each option; ``flags`` where they are not ``--name``."""


def add(parser: argparse._ActionsContainer, *names: str, required: bool | None = None) -> None:
    """Let a command, or a group of its options, take options of the table.

    ``required``: whether each has to be given, if not what is usual.
    """
    for name in names:
        stated = dict(OPTIONS[name])
        flags = stated.pop("flags", (f"--{name.replace('_', '-')}",))
        if required is False and not flags[0].startswith("-"):
            stated["nargs"] = "*"
        elif required:
            stated["required"] = True
        parser.add_argument(*flags, **stated)


def given(args: argparse.Namespace, names: Iterable[str]) -> dict[str, Any]:
    """Those of some options that were given, by name."""
    return {name: value for name in names if (value := getattr(args, name, None)) is not None}


def add_recipe(parser: argparse.ArgumentParser, of: type[Steps]) -> None:
    """An option for each field of a recipe, with its default and its description; those of the table as they are."""
    group = parser.add_argument_group("recipe")
    documented = "\n".join(inspect.cleandoc(kind.__doc__ or "") for kind in (Steps, of))
    described = dict(re.findall(r"^    (\w+): (.*(?:\n      .*)*)", documented, re.M))
    for field in fields(of):
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
            help=text + _default(field),
        )


def _default(field: Field) -> str:
    """What the help says of the default of a field of a recipe."""
    if "usual" in field.metadata:
        gentle = "; with probe+all {}".format(field.metadata["probe+all"])
        return f" (default: {field.metadata['usual']}{gentle})"
    return "" if field.default is None else f" (default: {field.default})"


def recipe_of(args: argparse.Namespace, of: type[R]) -> R:
    """The recipe that was asked for."""
    stated = given(args, (field.name for field in fields(of)))
    if stated.get("precision") == "auto":
        del stated["precision"]
    return of(**stated)
