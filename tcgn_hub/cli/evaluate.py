"""tcgn evaluate: measure weights on sections that they have not seen."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from tcgn_hub.cli.common import run, version
from tcgn_hub.cli.images import pick_device
from tcgn_hub.cli.training import add_data, log_to_stderr, sections_of


def build_parser(prog: str) -> argparse.ArgumentParser:
    """The arguments of tcgn evaluate."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Measure weights on sections that they were not trained on, beside baselines fitted on those that"
        " they were trained on, where these are among the data.",
    )
    add_data(parser)
    parser.add_argument("--weights", metavar="TAG|DIR|FILE", help="tag, hf-hub:ORG/NAME, or model directory")
    parser.add_argument(
        "--test", nargs="+", metavar="NAME", help="patients or sections to measure on (default: unseen)"
    )
    parser.add_argument(
        "--split",
        choices=("patient", "section"),
        default="patient",
        help="patient (default) refuses sections of patients that the weights have seen",
    )
    parser.add_argument("--views", type=int, choices=range(1, 9), default=1, help="average over so many rotations")
    parser.add_argument("--crop-px", type=int, metavar="N", help="side of a patch in pixels, not in micrometres")
    parser.add_argument("--cache", metavar="DIR", help="keep the crops here for other runs on the same data")
    parser.add_argument("-o", "--output", metavar="DIR", help="folder for metrics.json, per_gene.csv and figures")
    parser.add_argument("--version", action="version", version=version(prog))
    return parser


def main(argv: Sequence[str] | None = None, *, prog: str = "tcgn evaluate") -> int:
    """Run tcgn evaluate; returns its exit code."""
    args = build_parser(prog).parse_args(argv)
    with log_to_stderr():
        return run(lambda: _evaluate(args), prog)


def _evaluate(args: argparse.Namespace) -> int:
    from tcgn_hub.evaluation.heldout import evaluate
    from tcgn_hub.evaluation.tables import section_table
    from tcgn_hub.prediction.backends import uses_onnx

    evaluation = evaluate(
        sections_of(args),
        weights=args.weights,
        test=args.test,
        split=args.split,
        out=args.output,
        views=args.views,
        crop_px=args.crop_px,
        device=args.device if uses_onnx(args.weights) else pick_device(args.device),
        cache=args.cache,
    )
    print(section_table(evaluation))
    return 0
