"""tcgn view: a predicted slide in a viewer."""

from __future__ import annotations

import argparse
import signal

from tcgn_hub.cli.common import command, make_parser
from tcgn_hub.cli.options import add, given


def build_parser(prog: str) -> argparse.ArgumentParser:
    """The arguments of tcgn view."""
    parser = make_parser(
        prog,
        "Open a predicted slide in TissUUmaps, in the browser of this machine: pan, zoom, pick a gene, see value and"
        " quality of the tile under the pointer. Nothing is written beside your files. Ctrl-C ends it.",
    )
    add(parser, "result", "slide", "port", "no_browser")
    return parser


def _view(args: argparse.Namespace, prog: str) -> int:
    from tcgn_hub.writing.view import view

    # a terminal that is closed, and kill, end it as Ctrl-C does, unless nohup says otherwise; Windows has no SIGHUP
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, signal.default_int_handler)
    view(args.result, browser=not args.no_browser, **given(args, ("slide", "port")))
    return 0


main = command(build_parser, _view, "tcgn view")
