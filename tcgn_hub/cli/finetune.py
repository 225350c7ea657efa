"""tcgn finetune: train on sections of one's own."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tcgn_hub.cli.common import run, version
from tcgn_hub.cli.training import add_data, add_facts, add_recipe, facts_of, log_to_stderr, recipe_of, sections_of

if TYPE_CHECKING:
    from tcgn_hub.evaluation.splits import Split

_EPILOG = """\
The output is a model directory: tcgn-predict --weights OUT, timm's 'local-dir:OUT' and `tcgn weights publish OUT` take
it. Several processes or GPUs: torchrun --standalone --nproc-per-node 2 -m tcgn_hub.cli.main finetune ...
Ctrl-C and SIGTERM save the state; --resume continues as if nothing had happened."""


def build_parser(prog: str) -> argparse.ArgumentParser:
    """The arguments of tcgn finetune."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Train TCGN on spatial transcriptomics sections, and measure it on sections held out.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_data(parser)
    genes = parser.add_mutually_exclusive_group(required=True)
    genes.add_argument("--genes", metavar="A,B|FILE|PANEL", help="genes to predict: a list, a file of lines, a panel")
    genes.add_argument("--hvg", type=int, metavar="N", help="the N genes that vary most on the training sections")
    parser.add_argument("-o", "--output", required=True, metavar="DIR", help="model directory to write")
    parser.add_argument(
        "--split",
        default="patient",
        metavar="patient|section|none|FILE",
        help="what is held out together (default: patient), or a splits.json",
    )
    parser.add_argument("--test", nargs="+", metavar="NAME", help="patients or sections to hold out")
    parser.add_argument("--resume", action="store_true", help="continue the run in the output directory")
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="processes that prepare crops")
    parser.add_argument("--cache", metavar="DIR", help="keep the crops here for other runs on the same data")
    parser.add_argument(
        "--checkpoint-minutes", type=float, default=10, metavar="N", help="how often to save the state (default: 10)"
    )
    add_facts(parser)
    add_recipe(parser)
    parser.add_argument("--version", action="version", version=version(prog))
    return parser


def main(argv: Sequence[str] | None = None, *, prog: str = "tcgn finetune") -> int:
    """Run tcgn finetune; returns its exit code."""
    args = build_parser(prog).parse_args(argv)
    with log_to_stderr():
        return run(lambda: _finetune(args), prog)


def _finetune(args: argparse.Namespace) -> int:
    from tcgn_hub.evaluation.splits import SPLITS
    from tcgn_hub.panels import parse_genes
    from tcgn_hub.training.finetune import finetune

    recipe = recipe_of(args)
    finetune(
        sections_of(args),
        genes=args.hvg if args.genes is None else parse_genes(args.genes),
        out=args.output,
        recipe=recipe,
        split=args.split if args.split in SPLITS else _read_split(args.split),
        test=args.test,
        resume=args.resume,
        device=args.device,
        workers=args.workers,
        cache=args.cache,
        checkpoint_minutes=args.checkpoint_minutes,
        facts=facts_of(args),
    )
    return 0


def _read_split(path: str) -> Split:
    from tcgn_hub.errors import SectionError
    from tcgn_hub.evaluation.splits import SPLITS, Split

    try:
        return Split.from_json(Path(path).read_text(encoding="utf-8"))
    except OSError as err:
        raise SectionError(
            f"The split {path} is neither one of {', '.join(SPLITS)} nor a file that can be read ({err.strerror})."
        ) from err
