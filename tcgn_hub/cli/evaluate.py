"""tcgn evaluate: measure weights on sections that they have not seen."""

from __future__ import annotations

import argparse

from tcgn_hub.cli.common import command, make_parser, sections_of
from tcgn_hub.cli.options import add, given

_DATA = ("data", "sections", "expression", "mpp", "force_scale")
_OPTIONS = (
    *("weights", "device", "precision", "backend", "test", "train", "by", "allow_seen", "encoders", "encoder_um"),
    *("tta", "crop_px", "cache"),
)


def build_parser(prog: str) -> argparse.ArgumentParser:
    """The arguments of tcgn evaluate."""
    parser = make_parser(
        prog,
        "Measure weights on sections that they were not trained on (those of --test, or all that they have not seen),"
        " beside baselines fitted on those that they were trained on (or those of --train), where these are among the"
        " data. -o is a folder"
        " for metrics.json, per_gene.csv and figures.",
    )
    add(parser, *_DATA, *_OPTIONS, "output")
    return parser


def _evaluate(args: argparse.Namespace, prog: str) -> int:
    from tcgn_hub.evaluation.heldout import evaluate
    from tcgn_hub.evaluation.tables import section_table

    print(section_table(evaluate(sections_of(args), out=args.output, progress=True, **given(args, _OPTIONS))))
    return 0


main = command(build_parser, _evaluate, "tcgn evaluate")
