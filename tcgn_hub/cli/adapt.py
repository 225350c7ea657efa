"""tcgn adapt: weights fitted to a section by few of its spots."""

from __future__ import annotations

import argparse

from tcgn_hub.cli.common import command, make_parser, sections_of
from tcgn_hub.cli.options import add, given

_DATA = ("sections", "expression", "mpp", "bin_um", "force_scale")
_OPTIONS = ("weights", "seed", "allow_seen", "crop_px", "cache", "device")
_EPILOG = """\
The output is a model directory: tcgn-predict --weights OUT takes it. OUT/spots.txt names the spots that were used."""


def build_parser(prog: str) -> argparse.ArgumentParser:
    """The arguments of tcgn adapt."""
    parser = make_parser(
        prog,
        "Adapt weights to a section by few spots that were measured there: the last layer is fitted by ridge regression"
        " towards the one that the weights have, and what that gains is measured on the other spots. -o is the model"
        " directory to write.",
        epilog=_EPILOG,
    )
    add(parser, "data", *_DATA, "used_spots", *_OPTIONS)
    add(parser, "output", required=True)
    return parser


def _adapt(args: argparse.Namespace, prog: str) -> int:
    from tcgn_hub.evaluation.tables import tables
    from tcgn_hub.training.adapt import adapt

    options = given(args, _OPTIONS) | ({} if args.used_spots is None else {"spots": args.used_spots})
    print(tables(adapt(sections_of(args), out=args.output, **options)))
    return 0


main = command(build_parser, _adapt, "tcgn adapt")
