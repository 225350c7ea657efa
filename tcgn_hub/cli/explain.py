"""tcgn explain: what a prediction rests on."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from tcgn_hub.cli.common import (
    command,
    image_files,
    in_folder,
    load_predictor,
    make_parser,
    panel_of,
    patch_options,
    say_failed,
    say_notes,
)
from tcgn_hub.cli.options import add, given

if TYPE_CHECKING:
    from tcgn_hub.prediction.predictor import Predictor

_SCALE = ("mpp", "magnification", "patch_um", "force_scale")


def build_parser(prog: str) -> argparse.ArgumentParser:
    """The arguments of tcgn explain."""
    parser = make_parser(
        prog,
        "Draw what predictions rest on: for a patch maps of genes (Grad-CAM and finer ones) and the learned graph, one"
        " PNG an image; for a slide the map of each gene, and its highest and lowest tiles with their Grad-CAM. Without"
        " --genes it is the four of highest held-out PCC. -o is the picture of one patch, or a folder; without it"
        " IMAGE.explained.png is written to the current one.",
        epilog="Exit code: 0 all explained, 1 some images could not be, 2 none was, for the reason printed.",
    )
    add(parser, "images", "genes", "output", "npz", "occlusion", "tiles", "stride_um")
    add(parser, "weights", "device", "precision", "compile")
    add(parser.add_argument_group("scale", "read from the files where they state it"), *_SCALE, "strict")
    add(parser, "series", "force")
    return parser


def _explain(args: argparse.Namespace, prog: str) -> int:
    from tcgn_hub.errors import ImageError
    from tcgn_hub.extras import require
    from tcgn_hub.images.readers import is_slide_file
    from tcgn_hub.images.scale import given_scale

    images = image_files(args)
    args.genes = panel_of(args)
    given_scale(args.mpp, args.magnification)
    require("matplotlib", extra="plot", to="draw figures")
    pictures = _pictures(images, args)
    predictor = load_predictor(args, genes=args.genes)
    failed = []
    for image, picture in zip(images, pictures, strict=True):
        explain_one = _slide if is_slide_file(image) else _patch
        try:
            explain_one(predictor, image, picture, args, prog)
        except ImageError as err:
            if len(images) == 1:
                raise
            failed.append(str(err))
    if len(failed) == len(images):
        raise ImageError(f"None of {len(images)} images could be explained: {failed[0]}")
    return say_failed(prog, failed)


def _pictures(images: list[Path], args: argparse.Namespace) -> list[Path]:
    """What to draw each image into."""
    from tcgn_hub.errors import OutputError
    from tcgn_hub.images.readers import is_slide_file

    slides = [is_slide_file(image) for image in images]
    for kind, there, own in (
        ("patches", not all(slides), ("npz", "occlusion", "strict")),
        ("slides", any(slides), _TILED),
    ):
        for name in given(args, () if there else own):
            raise OutputError(f"--{name.replace('_', '-')} is for {kind}, and none is given; leave it out.")
    output = Path(args.output) if args.output else Path()
    if output.suffix and not output.is_dir():
        if len(images) > 1 or slides[0]:
            raise OutputError(f"{output} is one file, but several pictures are to be drawn; give a folder.")
        if output.suffix.lower() != ".png":
            raise OutputError(f"{output} is no name of a picture; let it end in .png.")
        return [output]
    return in_folder(output, images, ".explained.png")


_TILED = ("tiles", "stride_um", "series")


def _patch(predictor: Predictor, image: Path, picture: Path, args: argparse.Namespace, prog: str) -> None:
    from tcgn_hub.files import write_bytes
    from tcgn_hub.writing.explanations import draw_explanation, explanation_text, write_arrays

    explanation = predictor.explain(image, genes=args.genes, **patch_options(args), **given(args, ("occlusion",)))
    say_notes(prog, explanation.result)
    write_bytes(picture, draw_explanation(explanation))
    if args.npz:
        write_arrays(picture.with_suffix(".npz"), explanation)
    print(f"{explanation_text(explanation)}drawn in {picture}\n")


def _slide(predictor: Predictor, slide: Path, picture: Path, args: argparse.Namespace, prog: str) -> None:
    from tcgn_hub.files import write_bytes
    from tcgn_hub.prediction.explain import best_genes
    from tcgn_hub.writing.explanations import draw_gallery
    from tcgn_hub.writing.figures import draw_gene

    genes = best_genes(predictor.info) if args.genes is None else args.genes
    result = predictor.slide(
        slide, genes=genes, progress=True, **given(args, (*_SCALE, "series", "force", "stride_um"))
    )
    say_notes(prog, result)
    count = {} if args.tiles is None else {"count": args.tiles}
    for gallery in predictor.galleries(result, result.genes, **count):
        drawn = [picture.with_suffix(f".{gallery.gene}.{what}.png") for what in ("map", "tiles")]
        write_bytes(drawn[0], draw_gene(result, gallery.gene))
        write_bytes(drawn[1], draw_gallery(result, gallery))
        print(f"{slide}: {gallery.gene} drawn in {drawn[0]} and {drawn[1]}")


main = command(build_parser, _explain, "tcgn explain")
