"""tcgn crossval: hold out every patient or section once."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from tcgn_hub.cli.common import run, version
from tcgn_hub.cli.training import add_data, add_facts, add_recipe, facts_of, log_to_stderr, recipe_of, sections_of


def build_parser(prog: str) -> argparse.ArgumentParser:
    """The arguments of tcgn crossval."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Train once for every patient or section, without it, and measure all of them beside baselines.",
    )
    add_data(parser)
    parser.add_argument(
        "--genes", required=True, metavar="A,B|FILE|PANEL", help="genes to predict: a list, a file of lines, a panel"
    )
    parser.add_argument("-o", "--output", required=True, metavar="DIR", help="folder to write")
    parser.add_argument("--split", choices=("patient", "section"), default="patient", help="default: patient")
    parser.add_argument("--folds", nargs="+", metavar="NAME", help="only the folds of these patients or sections")
    parser.add_argument(
        "--final", action="store_true", help="then train on all sections, for weights that state these metrics"
    )
    parser.add_argument("--resume", action="store_true", help="keep the folds that have ended and continue")
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="processes that prepare crops")
    parser.add_argument(
        "--checkpoint-minutes", type=float, default=10, metavar="N", help="how often to save the state (default: 10)"
    )
    add_facts(parser)
    add_recipe(parser)
    parser.add_argument("--version", action="version", version=version(prog))
    return parser


def main(argv: Sequence[str] | None = None, *, prog: str = "tcgn crossval") -> int:
    """Run tcgn crossval; returns its exit code."""
    args = build_parser(prog).parse_args(argv)
    with log_to_stderr():
        return run(lambda: _crossval(args), prog)


def _crossval(args: argparse.Namespace) -> int:
    from tcgn_hub.evaluation.tables import section_table
    from tcgn_hub.panels import parse_genes
    from tcgn_hub.training.crossval import crossval

    recipe = recipe_of(args)
    evaluation = crossval(
        sections_of(args),
        genes=parse_genes(args.genes),
        out=args.output,
        by=args.split,
        only=args.folds,
        recipe=recipe,
        final=args.final,
        resume=args.resume,
        device=args.device,
        workers=args.workers,
        checkpoint_minutes=args.checkpoint_minutes,
        facts=facts_of(args),
    )
    print(section_table(evaluation))
    return 0
