"""tcgn predict, also installed as tcgn-predict: genes and values of patches and slides."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tcgn_hub.cli.common import run, version
from tcgn_hub.cli.images import above_zero, add_images, add_scale, add_weights, images_of, pick_device, positive

if TYPE_CHECKING:
    from tcgn_hub.prediction.slides import SlidePrediction

_PATCH_FORMATS = ("table", "csv", "json")
_EXPLAINED = 3  # genes of a report whose highest and lowest tiles are shown
_SLIDE_FORMATS = ("h5ad", "csv", "parquet", "geojson")


def build_parser(prog: str = "tcgn-predict") -> argparse.ArgumentParser:
    """The arguments of tcgn predict."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Predict gene expression in the centre of H&E patches, or over the tissue of slides.",
        epilog="A file of a slide format (.svs, .ndpi, .mrxs, .ome.tif, ...) is taken as a slide, and so is any picture"
        " where an option for slides is given. Exit code: 0 all predicted, 1 some images could not be, 2 nothing was,"
        " for the reason printed.",
    )
    add_images(parser)
    parser.add_argument("--top", type=positive, metavar="K", help="patches: only the K genes of the highest values")
    parser.add_argument("--genes", metavar="A,B|FILE", help="only these genes: a list with commas, or a file of lines")
    parser.add_argument(
        "--significant-only",
        action="store_true",
        help="leave out genes not predicted better than chance on held-out tissue",
    )
    parser.add_argument(
        "--format",
        choices=tuple(dict.fromkeys(_PATCH_FORMATS + _SLIDE_FORMATS)),
        help="default: by the suffix of -o; otherwise table for patches, h5ad for slides",
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="FILE|DIR",
        help="where to write; a folder for several slides (default: standard output)",
    )
    add_weights(parser)
    parser.add_argument(
        "--views",
        type=int,
        choices=range(1, 9),
        default=1,
        metavar="N",
        help="average over so many rotations and reflections, 1 to 8, and say how much they differ (default: 1)",
    )
    parser.add_argument("--batch-size", type=positive, default=32, metavar="N", help="images at once (default: 32)")
    parser.add_argument(
        "--backend",
        choices=("torch", "onnx"),
        help="onnx needs no PyTorch, but weights that `tcgn export` wrote (default: onnx for FILE.onnx, else torch)",
    )
    parser.add_argument("--version", action="version", version=version(prog))

    add_scale(parser)

    slides = parser.add_argument_group("slides")
    slides.add_argument("--stride", type=above_zero, metavar="UM", help="distance of tiles (default: their side)")
    slides.add_argument("--spots", metavar="FILE", help="predict these spots: tissue_positions, her2st selection, h5ad")
    slides.add_argument(
        "--min-tissue",
        type=float,
        metavar="SHARE",
        help="least share of tissue in a tile (default: 0.5; 0: every tile)",
    )
    slides.add_argument("--features", action="store_true", help="keep the 1280 features of each tile, in an h5ad")
    slides.add_argument(
        "--plot", metavar="GENE,...", help="maps of genes and of the tissue, PNG files beside the output"
    )
    slides.add_argument("--report", action="store_true", help="a self-contained HTML page beside the output")
    slides.add_argument("--bulk", metavar="FILE", help="one pseudo-bulk row per slide, CSV")
    slides.add_argument("--workers", type=int, metavar="N", help="processes that read tiles (default: 1)")
    slides.add_argument("--max-pixels", type=positive, metavar="N", help="largest picture to decode as a whole")
    return parser


def main(argv: Sequence[str] | None = None, *, prog: str = "tcgn-predict") -> int:
    """Run tcgn predict, or tcgn-predict; returns its exit code."""
    args = build_parser(prog).parse_args(argv)
    return run(lambda: _predict(args, prog), prog)


def _predict(args: argparse.Namespace, prog: str) -> int:
    from tcgn_hub.images.slides import is_slide_file
    from tcgn_hub.panels import parse_genes
    from tcgn_hub.prediction.backends import uses_onnx

    images = images_of(args)
    if args.genes is not None:
        args.genes = parse_genes(args.genes)
    suffix = Path(args.output).suffix.lstrip(".").lower() if args.output else ""
    wants_slide = args.format in ("h5ad", "parquet", "geojson") or suffix in ("h5ad", "parquet", "geojson")
    options = (args.stride, args.spots, args.min_tissue, args.plot, args.bulk, args.workers, args.max_pixels)
    as_slides = wants_slide or args.features or args.report or any(option is not None for option in options)

    if not uses_onnx(args.weights, args.backend):
        args.device = pick_device(args.device)
    if as_slides or any(map(is_slide_file, images)):
        return _predict_slides(images, args, prog)
    return _predict_patches(images, args, prog)


def _shared_options(args: argparse.Namespace) -> dict[str, Any]:
    """What patches and slides are predicted with alike."""
    return {
        "weights": args.weights,
        "genes": args.genes,
        "mpp": args.mpp,
        "magnification": args.magnification,
        "patch_um": args.patch_um,
        "significant_only": args.significant_only,
        "views": args.views,
        "batch_size": args.batch_size,
        "device": args.device,
        "backend": args.backend,
        "progress": True,
    }


def _predict_patches(images: list[Path], args: argparse.Namespace, prog: str) -> int:
    from tcgn_hub.files import write_text
    from tcgn_hub.prediction.patches import predict
    from tcgn_hub.writing.tables import FORMATS

    prediction = predict(
        images,
        on_error="skip",
        **_shared_options(args),
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


def _predict_slides(slides: list[Path], args: argparse.Namespace, prog: str) -> int:
    from tcgn_hub.errors import ImageError, OutputError, PanelError, SectionError
    from tcgn_hub.prediction.slides import predict_slide

    if args.spots and len(slides) > 1:
        raise SectionError("--spots belongs to one slide; give one.")
    outputs = _outputs(slides, args)
    if outputs is None and not args.bulk:
        raise OutputError("Say where to write the tiles: -o FILE for one slide, -o DIR for several, or --bulk FILE.")
    _check_extras(outputs, args)
    if outputs is None and (args.plot or args.report or args.features):
        raise OutputError("--plot, --report and --features belong to the output of the tiles; say where with -o.")
    options: dict[str, Any] = {
        name: value
        for name, value in (("min_tissue", args.min_tissue), ("workers", args.workers), ("max_pixels", args.max_pixels))
        if value is not None
    }
    if args.plot:
        from tcgn_hub.models.loading import load_model
        from tcgn_hub.prediction.patches import gene_columns

        # a gene that is not there should not be found out after the slides are predicted
        info = load_model(args.weights)[1]
        columns = gene_columns(info, args.genes, significant_only=args.significant_only)
        absent = [i for i in gene_columns(info, args.plot.split(",")) if i not in columns]
        if absent:
            raise PanelError(f"{info.genes[absent[0]]} is to be drawn, but not among the genes that are predicted.")
    failed: list[str] = []
    done: list[SlidePrediction] = []
    states: list[Path] = []
    for i, slide in enumerate(slides):
        state = None if outputs is None else outputs[i].with_name(f"{outputs[i].name}.partial")
        try:
            prediction = predict_slide(
                slide,
                stride_um=args.stride,
                spots=args.spots,
                features=args.features,
                resume=state,
                **_shared_options(args),
                **options,
            )
        except ImageError as err:
            if len(slides) == 1:
                raise
            failed.append(str(err))
            continue
        done.append(prediction)
        if outputs is not None and state is not None:
            _write(prediction, outputs[i], args)
            states.append(state)
        for message in prediction.failed.values():
            print(f"{prog}: {message}", file=sys.stderr)
    if not done:
        raise ImageError(f"None of {len(slides)} slides could be predicted: {failed[0]}")
    if args.bulk:
        from tcgn_hub.files import write_text
        from tcgn_hub.writing.bulk import bulk_csv
        from tcgn_hub.writing.frames import bulk_facts_json

        write_text(args.bulk, bulk_csv(done))
        write_text(f"{args.bulk}.json", bulk_facts_json(done))
    for state in states:
        shutil.rmtree(state, ignore_errors=True)
    for message in failed:
        print(f"{prog}: {message}", file=sys.stderr)
    return 1 if failed or any(prediction.failed for prediction in done) else 0


def _check_extras(outputs: list[Path] | None, args: argparse.Namespace) -> None:
    """Ask for what writing needs before anything is predicted."""
    from tcgn_hub.extras import require

    if outputs is None:
        return
    kind = args.format or outputs[0].suffix.lstrip(".").lower()
    if kind == "h5ad":
        require("anndata", extra="h5ad", to="write .h5ad files")
    if kind == "parquet":
        require("pyarrow", extra="parquet", to="write .parquet files")
    if args.plot or args.report:
        require("matplotlib", extra="plot", to="draw figures")


def _outputs(slides: list[Path], args: argparse.Namespace) -> list[Path] | None:
    """Where each slide's tiles go; None if nowhere."""
    from tcgn_hub.errors import OutputError

    if args.output is None:
        return None
    output = Path(args.output)
    to_file = len(slides) == 1 and bool(output.suffix) and not output.is_dir()
    kind = args.format or (output.suffix.lstrip(".").lower() if to_file else "h5ad")
    if kind not in _SLIDE_FORMATS:
        raise OutputError(f"{kind!r} is no format for slides; give one of {', '.join(_SLIDE_FORMATS)}.")
    if args.features and kind != "h5ad":
        raise OutputError("--features are kept in an .h5ad only; give -o a name that ends so.")
    if to_file:
        if not output.parent.is_dir():
            raise OutputError(f"{output} cannot be written: there is no folder {output.parent}.")
        return [output]
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise OutputError(f"The folder {output} cannot be made ({err.strerror or err}).") from err
    names = [slide.name for slide in slides]
    if len(set(names)) < len(names):
        raise OutputError("Two slides have the same name; predict them into folders of their own.")
    return [output / f"{slide.name}.{kind}" for slide in slides]


def _write(prediction: SlidePrediction, output: Path, args: argparse.Namespace) -> None:
    kind = args.format or output.suffix.lstrip(".").lower()
    if kind == "h5ad":
        from tcgn_hub.writing.anndata import write_h5ad

        write_h5ad(output, prediction)
    elif kind == "parquet":
        from tcgn_hub.writing.frames import write_parquet

        write_parquet(output, prediction)
    else:
        from tcgn_hub.files import write_text
        from tcgn_hub.writing.frames import facts_json, to_csv
        from tcgn_hub.writing.geojson import to_geojson

        write_text(output, to_csv(prediction) if kind == "csv" else to_geojson(prediction))
        if kind == "csv":
            write_text(f"{output}.json", facts_json(prediction))
    if args.plot:
        from tcgn_hub.writing.figures import gene_map, mask_figure

        for gene in args.plot.split(","):
            gene_map(prediction, gene.strip(), output.with_suffix(f".{gene.strip()}.png"))
        if prediction.mask is not None:
            mask_figure(prediction, output.with_suffix(".tissue.png"))
    if args.report:
        from tcgn_hub.prediction.explain import galleries
        from tcgn_hub.writing.report import mapped_genes, write_report

        explained = galleries(prediction, mapped_genes(prediction)[:_EXPLAINED], device=args.device)
        write_report(output.with_suffix(".html"), prediction, galleries=explained)


if __name__ == "__main__":
    sys.exit(main())
