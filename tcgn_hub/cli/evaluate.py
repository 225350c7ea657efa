"""tcgn evaluate: measure weights on sections that they have not seen."""

from __future__ import annotations

import argparse
from collections import Counter
from typing import Any

from tcgn_hub.cli.common import command, make_parser, panel_of, sections_of
from tcgn_hub.cli.options import add, given

_DATA = ("data", "sections", "expression", "mpp", "bin_um", "force_scale")
_OPTIONS = (
    *("weights", "device", "precision", "compile", "backend", "test", "train", "by", "allow_seen", "encoders"),
    *("encoder_um", "tta", "crop_px", "cache"),
)
_OTHERS = ("predictions", "label", "predictions_scale")


def build_parser(prog: str) -> argparse.ArgumentParser:
    """The arguments of tcgn evaluate."""
    parser = make_parser(
        prog,
        "Measure weights, and predictions of any other method, on sections that the weights were not trained on (those"
        " of --test, or all that they have not seen), beside baselines fitted on those that they were trained on (or"
        " those of --train), where these are among the data. -o is a folder for metrics.json, per_gene.csv, figures"
        " and evaluation.html.",
    )
    add(parser, *_DATA, *_OPTIONS, *_OTHERS, "genes", "output")
    return parser


def _evaluate(args: argparse.Namespace, prog: str) -> int:
    from tcgn_hub.evaluation.heldout import evaluate
    from tcgn_hub.evaluation.tables import tables

    options = {**given(args, _OPTIONS), **_predictions(args)}
    if (genes := panel_of(args)) is not None:
        options["genes"] = genes
    print(tables(evaluate(sections_of(args), out=args.output, progress=True, **options)))
    return 0


def _predictions(args: argparse.Namespace) -> dict[str, Any]:
    """The files of other methods by what to call them, and their scales."""
    from tcgn_hub.data.predictions import stem
    from tcgn_hub.errors import SectionError

    files, labels, scales = args.predictions or [], args.label, args.predictions_scale or ["log"]
    for name, values in (("--label", labels), ("--predictions-scale", scales if len(scales) > 1 else None)):
        if values is not None and len(values) != len(files):
            raise SectionError(f"{name} is given {len(values)} times for {len(files)} files of --predictions.")
    labels = labels or [stem(file) for file in files]
    twice = [label for label, count in Counter(labels).items() if count > 1]
    if twice:
        raise SectionError(f"Two files of predictions would be called {twice[0]}; name each with --label.")
    if not files:
        return {}
    scales = scales * len(files) if len(scales) == 1 else scales
    return {
        "predictions": dict(zip(labels, files, strict=True)),
        "predictions_scale": dict(zip(labels, scales, strict=True)),
    }


main = command(build_parser, _evaluate, "tcgn evaluate")
