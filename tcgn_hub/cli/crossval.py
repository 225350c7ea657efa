"""tcgn crossval: hold out every patient or section once."""

from __future__ import annotations

import argparse
from pathlib import Path

from tcgn_hub.cli.common import command, make_parser, metadata_of, panel_of, sections_of
from tcgn_hub.cli.kept import keeping, recall
from tcgn_hub.cli.options import add, add_recipe, given, recipe_of
from tcgn_hub.training.recipe import Recipe

_DATA = ("sections", "expression", "mpp", "bin_um", "force_scale")
_OPTIONS = ("by", "final", "resume", "allow_seen", "device", "workers", "checkpoint_minutes")


def build_parser(prog: str) -> argparse.ArgumentParser:
    """The arguments of tcgn crossval."""
    parser = make_parser(
        prog,
        "Train once for every patient or section, without it, and measure all of them beside baselines. -o is the"
        " folder of the folds.",
        epilog="`tcgn crossval --resume -o OUT` continues what was interrupted: OUT keeps what the run was asked for.",
    )
    add(parser, "data", required=False)
    add(parser, *_DATA, "genes")
    add(parser, "output", required=True)
    add(parser, *_OPTIONS, "folds", "metadata")
    add_recipe(parser, Recipe)
    return parser


def _crossval(args: argparse.Namespace, prog: str) -> int:
    from tcgn_hub.evaluation.tables import tables
    from tcgn_hub.training.checkpoints import check_folder
    from tcgn_hub.training.crossval import crossval

    if not args.resume:
        check_folder(Path(args.output), resume=False)
    recall(args)
    recipe, metadata, panel = recipe_of(args, Recipe), metadata_of(args), panel_of(args)
    with keeping(args, afterwards=True):
        evaluation = crossval(
            sections_of(args),
            genes=panel,
            out=args.output,
            only=args.folds,
            recipe=recipe,
            metadata=metadata,
            **given(args, _OPTIONS),
        )
    print(tables(evaluation))
    return 0


main = command(build_parser, _crossval, "tcgn crossval")
