"""tcgn demo: a web page to play with."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from tcgn_hub.cli.common import run, version
from tcgn_hub.cli.images import add_weights, pick_device, positive


def build_parser(prog: str) -> argparse.ArgumentParser:
    """The arguments of tcgn demo."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Open a web page on this machine: drop a patch or a slide, pick genes, see values, maps and the"
        " learned graph. Ctrl-C ends it.",
    )
    add_weights(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: only this machine)")
    parser.add_argument("--port", type=int, default=7860, metavar="N", help="default: 7860; 0: one that is free")
    parser.add_argument("--max-mb", type=positive, default=200, metavar="N", help="largest upload (default: 200)")
    parser.add_argument("--version", action="version", version=version(prog))
    return parser


def main(argv: Sequence[str] | None = None, *, prog: str = "tcgn demo") -> int:
    """Run tcgn demo; returns its exit code."""
    args = build_parser(prog).parse_args(argv)
    return run(lambda: _demo(args), prog)


def _demo(args: argparse.Namespace) -> int:
    from tcgn_hub.demo import launch_demo

    launch_demo(args.weights, host=args.host, port=args.port, max_mb=args.max_mb, device=pick_device(args.device))
    return 0
