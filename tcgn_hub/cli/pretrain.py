"""tcgn pretrain: distil frozen networks into a backbone."""

from __future__ import annotations

import argparse
from pathlib import Path

from tcgn_hub.cli.common import command, make_parser, metadata_of
from tcgn_hub.cli.kept import keeping, recall
from tcgn_hub.cli.options import add, add_recipe, given, recipe_of
from tcgn_hub.training.recipe import Distillation

_OPTIONS = ("sections", "resume", "mpp", "device", "workers", "cache", "checkpoint_minutes")
_EPILOG = """\
No gene is looked at. The output is a start for `tcgn finetune --weights OUT`, and a backbone: 'local-dir:OUT' of timm
with num_classes=0.
Several processes or GPUs: torchrun --standalone --nproc-per-node 2 -m tcgn_hub.cli.main pretrain ...
Whether the licence of a teacher allows a student to be made, and passed on, is for you to heed.
Ctrl-C and SIGTERM save the state; `tcgn pretrain --resume -o OUT` continues as if nothing had happened."""


def build_parser(prog: str) -> argparse.ArgumentParser:
    """The arguments of tcgn pretrain."""
    parser = make_parser(
        prog,
        "Distil frozen networks of timm into the backbone of TCGN, from unlabelled tissue. -o is the model directory to"
        " write.",
        epilog=_EPILOG,
    )
    add(parser, "tissue", required=False)
    add(parser, "teacher")
    add(parser, "output", required=True)
    add(parser, *_OPTIONS, "metadata")
    add_recipe(parser, Distillation)
    return parser


def _pretrain(args: argparse.Namespace, prog: str) -> int:
    from tcgn_hub.training.checkpoints import check_folder
    from tcgn_hub.training.pretrain import pretrain

    check_folder(Path(args.output), resume=bool(args.resume))
    recall(args)
    recipe, metadata = recipe_of(args, Distillation), metadata_of(args)
    with keeping(args, afterwards=False):
        pretrain(
            args.data,
            teacher=args.teacher,
            out=args.output,
            recipe=recipe,
            metadata=metadata,
            **given(args, _OPTIONS),
        )
    return 0


main = command(build_parser, _pretrain, "tcgn pretrain")
