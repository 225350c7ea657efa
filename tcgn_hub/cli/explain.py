"""tcgn explain: what a prediction rests on."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tcgn_hub.cli.common import run, version
from tcgn_hub.cli.images import above_zero, add_images, add_scale, add_weights, images_of, pick_device, positive


def build_parser(prog: str) -> argparse.ArgumentParser:
    """The arguments of tcgn explain."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Draw what predictions rest on: for a patch maps of genes (Grad-CAM and finer ones) and the learned"
        " graph, one PNG an image; for a slide the map of each gene, and its highest and lowest tiles with their"
        " Grad-CAM.",
        epilog="Exit code: 0 all explained, 1 some images could not be, 2 none was, for the reason printed.",
    )
    add_images(parser)
    parser.add_argument(
        "--gene",
        "--genes",
        dest="genes",
        metavar="A,B|FILE",
        help="genes to explain: a list with commas, or a file of lines (default: the four of highest held-out PCC)",
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="FILE|DIR",
        help="the picture of one patch, or a folder (default: IMAGE.explained.png in the current folder)",
    )
    parser.add_argument("--npz", action="store_true", help="patches: the arrays too, beside the picture")
    parser.add_argument("--occlusion", action="store_true", help="patches: check the maps by covering parts (slower)")
    parser.add_argument(
        "--tiles", type=positive, default=4, metavar="N", help="slides: so many highest and lowest tiles"
    )
    parser.add_argument(
        "--stride", type=above_zero, metavar="UM", help="slides: distance of tiles (default: their side)"
    )
    add_weights(parser)
    parser.add_argument("--version", action="version", version=version(prog))
    add_scale(parser)
    return parser


def main(argv: Sequence[str] | None = None, *, prog: str = "tcgn explain") -> int:
    """Run tcgn explain; returns its exit code."""
    args = build_parser(prog).parse_args(argv)
    return run(lambda: _explain(args, prog), prog)


def _explain(args: argparse.Namespace, prog: str) -> int:
    from tcgn_hub.errors import ImageError, OutputError
    from tcgn_hub.extras import require
    from tcgn_hub.images.slides import is_slide_file
    from tcgn_hub.panels import parse_genes

    images = images_of(args)
    args.genes = None if args.genes is None else parse_genes(args.genes)
    require("matplotlib", extra="plot", to="draw figures")
    output = Path(args.output) if args.output else Path()
    to_file = bool(output.suffix) and not output.is_dir()
    if to_file and (len(images) > 1 or is_slide_file(images[0])):
        raise OutputError(f"{output} is one file, but several pictures are to be drawn; give a folder.")
    if to_file and output.suffix.lower() != ".png":
        raise OutputError(f"{output} is no name of a picture; let it end in .png.")
    if not to_file:
        names = [image.name for image in images]
        if len(set(names)) < len(names):
            raise OutputError("Two images have the same name; explain them into folders of their own.")
        try:
            output.mkdir(parents=True, exist_ok=True)
        except OSError as err:
            raise OutputError(f"The folder {output} cannot be made ({err.strerror or err}).") from err
    args.device = pick_device(args.device)
    failed = []
    for image in images:
        explain_one = _slide if is_slide_file(image) else _patch
        try:
            explain_one(image, output if to_file else output / f"{image.name}.explained.png", args)
        except ImageError as err:
            if len(images) == 1:
                raise
            failed.append(str(err))
    if len(failed) == len(images):
        raise ImageError(f"None of {len(images)} images could be explained: {failed[0]}")
    for message in failed:
        print(f"{prog}: {message}", file=sys.stderr)
    return 1 if failed else 0


def _patch(image: Path, picture: Path, args: argparse.Namespace) -> None:
    from tcgn_hub.files import write_bytes
    from tcgn_hub.prediction.explain import explain
    from tcgn_hub.writing.explanations import draw_explanation, explanation_text, write_arrays

    explanation = explain(
        image,
        genes=args.genes,
        weights=args.weights,
        mpp=args.mpp,
        magnification=args.magnification,
        patch_um=args.patch_um,
        occlusion=args.occlusion,
        device=args.device,
    )
    write_bytes(picture, draw_explanation(explanation))
    if args.npz:
        write_arrays(picture.with_suffix(".npz"), explanation)
    print(f"{explanation_text(explanation)}drawn in {picture}\n")


def _slide(slide: Path, picture: Path, args: argparse.Namespace) -> None:
    from tcgn_hub.files import write_bytes
    from tcgn_hub.models.loading import load_model
    from tcgn_hub.prediction.explain import best_genes, galleries
    from tcgn_hub.prediction.slides import predict_slide
    from tcgn_hub.writing.explanations import draw_gallery
    from tcgn_hub.writing.figures import gene_map

    prediction = predict_slide(
        slide,
        genes=best_genes(load_model(args.weights)[1]) if args.genes is None else args.genes,
        weights=args.weights,
        mpp=args.mpp,
        magnification=args.magnification,
        patch_um=args.patch_um,
        stride_um=args.stride,
        device=args.device,
        progress=True,
    )
    for gallery in galleries(prediction, prediction.genes, count=args.tiles, device=args.device):
        drawn = [picture.with_suffix(f".{gallery.gene}.{what}.png") for what in ("map", "tiles")]
        gene_map(prediction, gallery.gene, drawn[0])
        write_bytes(drawn[1], draw_gallery(prediction, gallery))
        print(f"{slide}: {gallery.gene} drawn in {drawn[0]} and {drawn[1]}")
