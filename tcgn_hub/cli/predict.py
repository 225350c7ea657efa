"""tcgn predict, also installed as tcgn-predict: genes and values of patches and slides."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tcgn_hub.cli.common import image_files, load_predictor, make_parser, panel_of, run
from tcgn_hub.cli.options import add, given

if TYPE_CHECKING:
    from tcgn_hub.prediction.predictor import Predictor
    from tcgn_hub.result import Result

PATCH_FORMATS = ("table", "csv", "json")
SLIDE_FORMATS = ("h5ad", "csv", "parquet", "geojson")
_SUFFIXES = {".txt": "table", **{f".{kind}": kind for kind in (*PATCH_FORMATS[1:], *SLIDE_FORMATS)}}
_EXPLAINED = 3  # genes of a report whose highest and lowest tiles are shown

_LOADED = ("weights", "device", "precision", "backend")
_SHARED = ("significant_only", "tta", "batch_size")
_SCALE = ("mpp", "magnification", "patch_um")
_TILED = ("stride_um", "spots", "min_tissue", "features", "workers", "max_pixels")
_DRAWN = ("plot", "report", "bulk")


def build_parser(prog: str = "tcgn-predict") -> argparse.ArgumentParser:
    """The arguments of tcgn predict."""
    parser = make_parser(
        prog,
        "Predict gene expression in the centre of H&E patches, or over the tissue of slides. -o is a file, or a folder"
        " for several slides; without it patches are shown as a table.",
        epilog="A file of a slide format (.svs, .ndpi, .mrxs, .ome.tif, ...) is taken as a slide, and so is any picture"
        " where an option for slides is given. Exit code: 0 all predicted, 1 some images could not be, 2 nothing was,"
        " for the reason printed.",
    )
    add(parser, "images", "genes", "top", "format", "output", *_LOADED, *_SHARED)
    add(parser.add_argument_group("scale", "read from the files where they state it; never guessed"), *_SCALE)
    add(parser.add_argument_group("slides"), *_TILED, *_DRAWN)
    return parser


def main(argv: Sequence[str] | None = None, *, prog: str = "tcgn-predict") -> int:
    """Run tcgn predict, or tcgn-predict; returns its exit code."""
    args = build_parser(prog).parse_args(argv)
    return run(lambda: _predict(args, prog), prog)


def _predict(args: argparse.Namespace, prog: str) -> int:
    from tcgn_hub.images.scale import given_scale
    from tcgn_hub.images.slides import is_slide_file

    images = image_files(args)
    suffix = Path(args.output).suffix.lower() if args.output else ""
    wanted = {args.format, _SUFFIXES.get(suffix)} - set(PATCH_FORMATS) - {None}
    given_scale(args.mpp, args.magnification)
    options = {"genes": panel_of(args.genes), "progress": True, **given(args, (*_SHARED, *_SCALE))}
    if wanted or given(args, (*_TILED, *_DRAWN)) or any(map(is_slide_file, images)):
        return _predict_slides(images, options, args, prog)
    return _predict_patches(images, options, args, prog)


def _predict_patches(images: list[Path], options: dict[str, Any], args: argparse.Namespace, prog: str) -> int:
    from tcgn_hub.files import write_text
    from tcgn_hub.writing.tables import FORMATS

    output = Path(args.output) if args.output else None
    kind = (_kind(output, args.format) if output else args.format) or "table"
    _check_folder(output)
    result = load_predictor(args).patches(images, on_error="skip", **options)
    text = FORMATS[kind](result, top=args.top)
    if output:
        write_text(output, text)
    else:
        sys.stdout.write(text)
    return _say(prog, result.failed.values())


def _predict_slides(slides: list[Path], options: dict[str, Any], args: argparse.Namespace, prog: str) -> int:
    from tcgn_hub.errors import ImageError, OutputError
    from tcgn_hub.files import write_text
    from tcgn_hub.writing.bulk import bulk_csv, bulk_metadata

    outputs = _outputs(slides, args)
    _check_slides(slides, outputs, args)
    predictor = load_predictor(args)
    columns = predictor.columns(options["genes"], significant_only=bool(args.significant_only))
    plots = _plots(predictor, columns, args.plot)
    options |= given(args, _TILED)
    failed: list[str] = []
    done: list[Result] = []
    for slide, output in zip(slides, outputs or [None] * len(slides), strict=True):
        state = output and _state(output)
        try:
            result = predictor.slide(slide, resume=state, **options)
        except ImageError as err:
            if len(slides) == 1:
                raise
            failed.append(str(err))
            continue
        if output:
            _write(result, output, plots, predictor if args.report else None, prog)
        failed += result.failed.values()
        done.append(result)
    if not done:
        raise ImageError(f"None of {len(slides)} slides could be predicted: {failed[0]}")
    if args.bulk:
        write_text(args.bulk, bulk_csv(done))
        write_text(f"{args.bulk}.json", bulk_metadata(done))
    for output in outputs or ():
        shutil.rmtree(_state(output), ignore_errors=True)
    return _say(prog, failed)


def _say(prog: str, failed: Any) -> int:
    """What could not be predicted, on stderr; the exit code."""
    for message in failed:
        print(f"{prog}: {message}", file=sys.stderr)
    return 1 if failed else 0


def _state(output: Path) -> Path:
    """Where what is done of a slide is kept, for a run that continues."""
    return output.with_name(f"{output.name}.partial")


def _kind(output: Path, asked: str | None) -> str | None:
    """The format of a file; None where nothing is said of it.

    Raises:
        OutputError: Its suffix is unknown, or is that of another format than the one asked for.
    """
    from tcgn_hub.errors import OutputError

    suffix = output.suffix.lower()
    kind = _SUFFIXES.get(suffix)
    if suffix and kind is None:
        raise OutputError(f"{output} is of no format that is known; let it end in one of {', '.join(_SUFFIXES)}.")
    if asked and kind not in (None, asked) and not (kind == "table" and asked in PATCH_FORMATS):
        raise OutputError(f"--format {asked} does not go with {output}; leave it out, or let the name end in .{asked}.")
    return asked or kind


def _check_folder(file: Path | None) -> None:
    from tcgn_hub.errors import OutputError

    if file and not file.parent.is_dir():
        raise OutputError(f"{file} cannot be written: there is no folder {file.parent}.")
    if file and file.is_dir():
        raise OutputError(f"{file} cannot be written: it is a folder.")


def _outputs(slides: list[Path], args: argparse.Namespace) -> list[Path] | None:
    """Where each slide's tiles go; None if nowhere.

    Raises:
        OutputError: There is no such place, or its format is not one for slides.
    """
    from tcgn_hub.errors import OutputError

    if args.output is None:
        return None
    output = Path(args.output)
    to_file = bool(output.suffix) and not output.is_dir()
    if to_file and len(slides) > 1 and output.suffix.lower() in _SUFFIXES:
        raise OutputError(f"{output} is one file, but there are {len(slides)} slides; give a folder.")
    to_file = to_file and len(slides) == 1
    kind = (_kind(output, args.format) if to_file else args.format) or "h5ad"
    if kind not in SLIDE_FORMATS:
        raise OutputError(f"{kind!r} is no format for slides; give one of {', '.join(SLIDE_FORMATS)}.")
    if to_file:
        _check_folder(output)
        return [output]
    names = [slide.name for slide in slides]
    if len(set(names)) < len(names):
        raise OutputError("Two slides have the same name; predict them into folders of their own.")
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise OutputError(f"The folder {output} cannot be made ({err.strerror or err}).") from err
    return [output / f"{slide.name}.{kind}" for slide in slides]


def _check_slides(slides: list[Path], outputs: list[Path] | None, args: argparse.Namespace) -> None:
    """Refuse, before anything is loaded, what cannot be done or would do nothing.

    Raises:
        OutputError: Nothing is to be written, or an option belongs to another output.
        SectionError: Spots are given for several slides, or beside options of a grid.
        ExtraError: A package that writing needs is not installed.
    """
    from tcgn_hub.errors import OutputError, SectionError
    from tcgn_hub.extras import require

    if args.top:
        raise OutputError("--top is for patches: all genes of a slide's tiles are written; choose some by --genes.")
    if args.spots and len(slides) > 1:
        raise SectionError("--spots belongs to one slide; give one.")
    if args.spots and given(args, ("stride_um", "min_tissue")):
        raise SectionError("--stride-um and --min-tissue are of a grid of tiles; leave them out, or --spots.")
    if outputs is None:
        if not args.bulk:
            raise OutputError(
                "Say where to write the tiles: -o FILE for one slide, -o DIR for several, or --bulk FILE."
            )
        if given(args, ("plot", "report", "features", "format")):
            raise OutputError("--plot, --report, --features and --format are of the output of the tiles; give -o.")
    if args.bulk:
        _check_folder(Path(args.bulk))
    suffix = outputs[0].suffix.lower() if outputs else ""
    if args.features and suffix != ".h5ad":
        raise OutputError("--features are kept in an .h5ad only; give -o a name that ends so.")
    if suffix == ".h5ad":
        require("anndata", extra="h5ad", to="write .h5ad files")
    if suffix == ".parquet":
        require("pyarrow", extra="parquet", to="write .parquet files")
    if args.plot or args.report:
        require("matplotlib", extra="plot", to="draw figures")


def _plots(predictor: Predictor, columns: list[int], genes: str | None) -> list[str]:
    """Genes to draw.

    Raises:
        PanelError: One is not among those that are predicted.
    """
    from tcgn_hub.errors import PanelError

    drawn = [] if genes is None else predictor.columns(genes.split(","))
    absent = [predictor.info.genes[i] for i in drawn if i not in columns]
    if absent:
        raise PanelError(f"{absent[0]} is to be drawn, but not among the genes that are predicted.")
    return [predictor.info.genes[i] for i in drawn]


def _write(result: Result, output: Path, plots: list[str], reporter: Predictor | None, prog: str) -> None:
    """The tiles, and maps of genes; and a report, if there is who explains it."""
    from tcgn_hub.writing.figures import gene_map, mask_figure
    from tcgn_hub.writing.report import mapped_genes, write_report

    result.write(output)
    for gene in plots:
        gene_map(result, gene, output.with_suffix(f".{gene}.png"))
    if plots and result.slide.mask is not None:
        mask_figure(result, output.with_suffix(".tissue.png"))
    if reporter:
        explained = []
        if reporter.info.backend == "onnx":
            print(f"{prog}: the report shows no tiles with Grad-CAM, which needs weights of PyTorch", file=sys.stderr)
        else:
            explained = reporter.galleries(result, mapped_genes(result)[:_EXPLAINED])
        write_report(output.with_suffix(".html"), result, galleries=explained)


if __name__ == "__main__":
    sys.exit(main())
