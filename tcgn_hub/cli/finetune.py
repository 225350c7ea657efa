"""tcgn finetune: train on sections of one's own."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tcgn_hub.cli.common import command, make_parser, metadata_of, panel_of, sections_of
from tcgn_hub.cli.kept import keeping, recall
from tcgn_hub.cli.options import add, add_recipe, given, recipe_of
from tcgn_hub.training.recipe import Recipe

if TYPE_CHECKING:
    from tcgn_hub.evaluation.splits import Split

_DATA = ("sections", "expression", "mpp", "bin_um", "force_scale")
_OPTIONS = (
    *("test", "resume", "allow_seen", "device", "workers", "cache", "checkpoint_minutes"),
    *("encoders", "encoder_um"),
)
_EPILOG = """\
The output is a model directory: tcgn-predict --weights OUT, timm's 'local-dir:OUT' and `tcgn weights publish OUT` take
it. Several processes or GPUs: torchrun --standalone --nproc-per-node 2 -m tcgn_hub.cli.main finetune ...
Ctrl-C and SIGTERM save the state; `tcgn finetune --resume -o OUT` continues as if nothing had happened: OUT keeps what
the run was asked for."""


def build_parser(prog: str) -> argparse.ArgumentParser:
    """The arguments of tcgn finetune."""
    parser = make_parser(
        prog,
        "Train TCGN on spatial transcriptomics sections, and measure it on sections held out. -o is the model directory"
        " to write.",
        epilog=_EPILOG,
    )
    add(parser, "data", required=False)
    add(parser, *_DATA)
    add(parser, "output", required=True)
    add(parser.add_mutually_exclusive_group(), "genes", "hvg")
    add(parser, "split", *_OPTIONS, "metadata")
    add_recipe(parser, Recipe)
    return parser


def _finetune(args: argparse.Namespace, prog: str) -> int:
    from tcgn_hub.training.checkpoints import check_folder
    from tcgn_hub.training.finetune import finetune

    check_folder(Path(args.output), resume=bool(args.resume))
    recall(args)
    split: dict[str, Any] = {} if args.split is None else {"split": _split(args.split, args.test)}
    recipe, metadata, panel = recipe_of(args, Recipe), metadata_of(args), panel_of(args)
    with keeping(args, afterwards=False):
        finetune(
            sections_of(args),
            genes=args.hvg if panel is None else panel,
            out=args.output,
            recipe=recipe,
            metadata=metadata,
            **split,
            **given(args, _OPTIONS),
        )
    return 0


def _split(text: str, test: list[str] | None) -> str | Split:
    """One of the known ways to split, or a file."""
    from tcgn_hub.errors import SectionError
    from tcgn_hub.evaluation.splits import SPLITS, Split

    if test and text not in ("patient", "section"):
        raise SectionError(f"--split {text} says what is held out; leave --test out.")
    if text in SPLITS:
        return text
    try:
        return Split.from_json(Path(text).read_text(encoding="utf-8"))
    except OSError as err:
        raise SectionError(
            f"The split {text} is neither one of {', '.join(SPLITS)} nor a file that can be read ({err.strerror})."
        ) from err


main = command(build_parser, _finetune, "tcgn finetune")
