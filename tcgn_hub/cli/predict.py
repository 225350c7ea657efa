"""tcgn predict, also installed as tcgn-predict: genes and values of patches."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tcgn_hub.cli.common import run, version

_FORMATS = ("table", "csv", "json")


def build_parser(prog: str = "tcgn-predict") -> argparse.ArgumentParser:
    """The arguments of tcgn predict."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Predict gene expression in the centre of H&E patches.",
        epilog="Exit code: 0 all predicted, 1 some images could not be, 2 nothing was, for the reason printed.",
    )
    parser.add_argument("images", nargs="+", help="image files, or folders of them")
    parser.add_argument("--top", type=_positive, metavar="K", help="only the K genes of the highest values")
    parser.add_argument("--genes", metavar="A,B|FILE", help="only these genes: a list with commas, or a file of lines")
    parser.add_argument("--format", choices=_FORMATS, help="default: by the suffix of -o, or table")
    parser.add_argument("-o", "--output", metavar="FILE", help="write to a file instead of standard output")
    parser.add_argument(
        "--magnification",
        type=int,
        choices=(10, 20, 40),
        default=20,
        help="of the images; 56, 112 or 224 px of their centre are predicted (default: 20)",
    )
    parser.add_argument(
        "--weights",
        metavar="TAG|DIR|FILE",
        help="tag of the manifest, hf-hub:ORG/NAME, model directory, or file of parameters",
    )
    parser.add_argument("--device", help="such as cpu or cuda (default: cuda where there is one)")
    parser.add_argument("--batch-size", type=_positive, default=32, metavar="N", help="images at once (default: 32)")
    parser.add_argument("--version", action="version", version=version(prog))
    return parser


def main(argv: Sequence[str] | None = None, *, prog: str = "tcgn-predict") -> int:
    """Run tcgn predict, or tcgn-predict; returns its exit code."""
    args = build_parser(prog).parse_args(argv)
    return run(lambda: _predict(args, prog), prog)


def _predict(args: argparse.Namespace, prog: str) -> int:
    from tcgn_hub.data.images import find_images
    from tcgn_hub.errors import DeviceError
    from tcgn_hub.outputs.files import write_text
    from tcgn_hub.outputs.tables import FORMATS

    images = find_images(args.images)
    genes = args.genes
    if genes is not None and not Path(genes).is_file():
        genes = genes.split(",")

    import torch

    from tcgn_hub.prediction import predict

    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as err:
        raise DeviceError(f"Device {device!r} cannot be used here ({str(err).splitlines()[0]}).") from err
    prediction = predict(
        images,
        weights=args.weights,
        genes=genes,
        magnification=args.magnification,
        batch_size=args.batch_size,
        device=device,
        on_error="skip",
        progress=True,
    )
    kind = args.format or (Path(args.output).suffix.lstrip(".") if args.output else "table")
    text = FORMATS.get(kind, FORMATS["table"])(prediction, top=args.top)
    if args.output:
        write_text(args.output, text)
    else:
        sys.stdout.write(text)
    for message in prediction.failed.values():
        print(f"{prog}: {message}", file=sys.stderr)
    return 1 if prediction.failed else 0


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not at least 1")
    return value


if __name__ == "__main__":
    sys.exit(main())
