"""tcgn predict, also installed as tcgn-predict: genes and values of patches and slides."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from tcgn_hub.cli.common import (
    command,
    image_files,
    in_folder,
    load_predictor,
    make_parser,
    panel_of,
    patch_options,
    say,
    say_done,
    say_failed,
    say_notes,
)
from tcgn_hub.cli.options import add, given
from tcgn_hub.text import counted

if TYPE_CHECKING:
    from tcgn_hub.prediction.predictor import Predictor
    from tcgn_hub.result import Result

_SUFFIXES = {"table": ".txt", **{kind: f".{kind}" for kind in ("csv", "json", "h5ad", "parquet", "geojson")}}
_OF_SLIDES = (".h5ad", ".parquet", ".geojson")  # a picture that is written so is taken as a slide
_EXPLAINED = 3  # genes of a report whose highest and lowest tiles are shown

_LOADED = ("weights", "device", "precision", "compile", "backend")
_SHARED = ("significant_only", "tta", "batch_size")
_SCALE = ("mpp", "magnification", "patch_um", "force_scale")
_TILED = ("series", "stride_um", "spots", "library", "min_tissue", "features", "workers", "max_pixels")
_DRAWN = ("plot", "map", "report", "bulk")


def build_parser(prog: str) -> argparse.ArgumentParser:
    """The arguments of tcgn predict."""
    parser = make_parser(
        prog,
        "Predict gene expression in the centre of H&E patches, or over the tissue of slides. -o is a file, or a folder"
        " for several slides; without it patches are shown as a table.",
        epilog="A file of a slide format (.svs, .ndpi, .mrxs, .ome.tif, ...) is taken as a slide, and so is any picture"
        " where an option for slides is given. Exit code: 0 all predicted, 1 some images could not be, or show no"
        " tissue, 2 nothing was, for the reason printed.",
    )
    add(parser, "images", "genes", "top", "format", "output", *_LOADED, *_SHARED)
    add(parser.add_argument_group("scale", "read from the files where they state it"), *_SCALE, "strict")
    add(parser, "force")
    add(parser.add_argument_group("slides"), *_TILED, *_DRAWN)
    return parser


def _predict(args: argparse.Namespace, prog: str) -> int:
    from tcgn_hub.errors import ImageError
    from tcgn_hub.images.readers import is_slide_file
    from tcgn_hub.prediction.patches import check_options

    images = image_files(args)
    options = {"genes": panel_of(args), **given(args, (*_SHARED, *_SCALE, "force"))}
    check_options(**options)
    suffix = Path(args.output or "").suffix.lower()
    as_slides = suffix in _OF_SLIDES or _SUFFIXES.get(args.format) in _OF_SLIDES or given(args, (*_TILED, *_DRAWN))
    slides = list(filter(is_slide_file, images))
    if slides and len(slides) < len(images) and not as_slides:
        other = next(image for image in images if image not in slides)
        raise ImageError(
            f"{len(slides)} of the {len(images)} images are slides, such as {slides[0]}, and the others, such as"
            f" {other}, may be patches: predict each kind by itself; with an option for slides, such as --stride-um,"
            " all are taken for slides."
        )
    if as_slides or slides:
        if args.strict:
            raise ImageError("--strict is for patches: slides without a scale are always refused; leave it out.")
        return _predict_slides(images, options, args, prog)
    return _predict_patches(images, options | patch_options(args), args, prog)


def _predict_patches(images: list[Path], options: dict[str, Any], args: argparse.Namespace, prog: str) -> int:
    from tcgn_hub.prediction.patches import check_patches
    from tcgn_hub.prediction.predictor import check_weights
    from tcgn_hub.writing.tables import FORMATS, to_table

    output = Path(args.output) if args.output else None
    suffix = _suffix_of(output, args.format) if output else _SUFFIXES[args.format or "table"]
    asked = {"genes": options["genes"], **given(args, ("significant_only", "backend"))}
    info = check_weights(args.weights, **asked)
    check_patches(images, info=info, on_error="skip", **options)
    began = monotonic()
    result = load_predictor(args, genes=options["genes"]).patches(images, on_error="skip", progress=True, **options)
    say_notes(prog, result)
    if args.top:
        result = result.top(args.top)
    if output is None:
        sys.stdout.writelines([to_table(result)] if suffix == ".txt" else FORMATS[suffix[1:]](result))
    else:
        result.write(output, format=suffix)
    code = say_failed(prog, result.failed.values())
    if output is not None:
        counts = _counts(result)
        say_done(prog, counted(len(result), "patch", "patches"), monotonic() - began, _tables(output, suffix), **counts)
    return code


def _predict_slides(slides: list[Path], options: dict[str, Any], args: argparse.Namespace, prog: str) -> int:
    from tcgn_hub.errors import ImageError, NoTissueError
    from tcgn_hub.prediction.predictor import check_resume
    from tcgn_hub.prediction.slides import check_slide
    from tcgn_hub.writing.bulk import BulkTable

    outputs, suffix = _outputs(slides, args)
    _check_slides(outputs, suffix, args)
    options |= given(args, _TILED)
    for slide, output in zip(slides, outputs, strict=True):
        if output and slide.exists() and _state(output).exists():
            loaded = given(args, ("weights", "device", "precision", "backend"))
            check_resume(slide, resume=_state(output), **loaded, **options)
    if len(slides) == 1:
        check_slide(slides[0], **options)
    predictor = load_predictor(args, genes=options["genes"])
    plots = _plots(predictor, options["genes"], args)
    bulk = BulkTable(args.bulk) if args.bulk else None
    failed: list[str] = []
    kinds: list[type[ImageError]] = []
    done = tiles = 0
    start = monotonic()
    for slide, output in zip(slides, outputs, strict=True):
        began, written = monotonic(), list[Path]()
        try:
            result = predictor.slide(slide, resume=output and _state(output), progress=True, **options)
        except ImageError as err:
            if len(slides) == 1:
                raise
            failed.append(str(err))
            kinds.append(type(err))
            continue
        say_notes(prog, result)
        if output and args.report:
            result = _with_measured(result, args, prog)
        if output:
            result.write(output, format=suffix)
            written = [
                *_tables(output, suffix),
                *_draw(result, output, plots, predictor if args.report else None, args.map or "value", prog),
            ]
        if bulk:
            bulk.add(result)
        failed += result.failed.values()
        counts = _counts(result)
        say_done(prog, f"{slide}: {counted(len(result), 'tile')}", monotonic() - began, written, **counts)
        done, tiles = done + 1, tiles + len(result)
    if not done:
        kind = NoTissueError if set(kinds) == {NoTissueError} else ImageError
        raise kind(f"None of {len(slides)} slides could be predicted: {failed[0]}")
    if bulk:
        bulk.write()
    for output in filter(None, outputs):
        shutil.rmtree(_state(output), ignore_errors=True)
    code = say_failed(prog, failed)
    if bulk or len(slides) > 1:
        what = f"{done} of {counted(len(slides), 'slide')}, {counted(tiles, 'tile')}"
        tables = [Path(args.bulk), Path(f"{args.bulk}.json")] if bulk else []
        say_done(prog, what, monotonic() - start, tables, failed=len(failed))
    return code


def _counts(result: Result) -> dict[str, int]:
    """What a summary warns of."""
    is_ood = result.is_ood
    ood = 0 if is_ood is None else int(is_ood.sum())
    return {"failed": len(result.failed), "notes": len(result.notes), "ood": ood}


def _tables(output: Path, suffix: str) -> list[Path]:
    """The files that `Result.write` leaves."""
    return [output, Path(f"{output}.json")] if suffix == ".csv" else [output]


def _state(output: Path) -> Path:
    """Where what is done of a slide is kept, for a run that continues."""
    return output.with_name(f"{output.name}.partial")


def _suffix_of(output: Path, asked: str | None) -> str:
    """The suffix of the format of a file that can be written."""
    import tcgn_hub.writing  # noqa: F401  (the formats)
    from tcgn_hub.errors import OutputError
    from tcgn_hub.result import format_of

    own, wanted = output.suffix.lower(), _SUFFIXES.get(asked or "")
    as_text = own == ".txt" and wanted in (".csv", ".json")
    if wanted and own in _SUFFIXES.values() and own != wanted and not as_text:
        raise OutputError(f"--format {asked} does not go with {output}; leave it out, or let the name end in {wanted}.")
    _check_place(output)
    return format_of(output, wanted)


def _check_place(file: Path) -> None:
    from tcgn_hub.errors import OutputError

    if not file.parent.is_dir():
        raise OutputError(f"{file} cannot be written: there is no folder {file.parent}.")
    if file.is_dir():
        raise OutputError(f"{file} cannot be written: it is a folder.")


def _outputs(slides: list[Path], args: argparse.Namespace) -> tuple[list[Path] | list[None], str]:
    """Where each slide's tiles go, None if nowhere, and the suffix of their format."""
    from tcgn_hub.errors import OutputError

    if args.output is None:
        return [None] * len(slides), ""
    output = Path(args.output)
    to_file = bool(output.suffix) and not output.is_dir()
    if to_file and len(slides) == 1:
        return [output], _suffix_of(output, args.format)
    if to_file and output.suffix.lower() in _SUFFIXES.values():
        raise OutputError(f"{output} is one file, but there are {len(slides)} slides; give a folder.")
    outputs = in_folder(output, slides, _SUFFIXES[args.format or "h5ad"])
    return outputs, _suffix_of(outputs[0], args.format)


def _check_slides(outputs: Sequence[Path | None], suffix: str, args: argparse.Namespace) -> None:
    """Refuse, before anything is loaded, what cannot be done or would do nothing."""
    from tcgn_hub.errors import OutputError, SectionError
    from tcgn_hub.extras import require

    if args.top:
        raise OutputError("--top is for patches: all genes of a slide's tiles are written; choose some by --genes.")
    if args.spots and len(outputs) > 1:
        raise SectionError("--spots belongs to one slide; give one.")
    if args.spots and given(args, ("stride_um", "min_tissue")):
        raise SectionError("--stride-um and --min-tissue are of a grid of tiles; leave them out, or --spots.")
    if args.library and not args.spots:
        raise SectionError("--library is of a file of spots; give --spots, or leave it out.")
    if outputs[0] is None:
        if not args.bulk:
            message = "Say where to write the tiles: -o FILE for one slide, -o DIR for several, or --bulk FILE."
            raise OutputError(message)
        if given(args, ("plot", "report", "features", "format")):
            raise OutputError("--plot, --report, --features and --format are of the output of the tiles; give -o.")
    if args.map and not (args.plot or args.report):
        raise OutputError("--map says what --plot and --report draw; give one of them, or leave it out.")
    if args.bulk:
        _check_place(Path(args.bulk))
    if args.features and suffix != ".h5ad":
        raise OutputError("--features are kept in an .h5ad only; give -o a name that ends so.")
    if args.plot or args.report:
        require("matplotlib", extra="plot", to="draw figures")


def _plots(predictor: Predictor, genes: list[str] | None, args: argparse.Namespace) -> list[str]:
    """Genes to draw."""
    from tcgn_hub.errors import OutputError, PanelError
    from tcgn_hub.writing.figures import no_depth

    typical = predictor.info.predicted_in_training
    if args.map == "given_depth" and (typical is None or typical.depth is None):
        raise OutputError(no_depth(predictor.info.name))
    predicted = predictor.columns(genes, significant_only=bool(args.significant_only))
    drawn = [] if args.plot is None else predictor.columns(args.plot.split(","))
    absent = [predictor.info.genes[i] for i in drawn if i not in predicted]
    if absent:
        raise PanelError(f"{absent[0]} is to be drawn, but not among the genes that are predicted.")
    return [predictor.info.genes[i] for i in drawn]


def _with_measured(result: Result, args: argparse.Namespace, prog: str) -> Result:
    """With what was measured of the spots, where their file holds it."""
    from tcgn_hub.data.readers.h5ad import read_h5ad
    from tcgn_hub.data.sections import beside
    from tcgn_hub.errors import SectionError
    from tcgn_hub.units import UNITS

    if result.slide is None or result.units != UNITS or Path(args.spots or "").suffix != ".h5ad":
        return result
    where = {"library": args.library, "image": result.slide.path, "mpp": result.slide.mpp}
    try:
        return beside(result, read_h5ad(args.spots, force_scale=True, **where))
    except SectionError as err:
        say(prog, f"the report has no measurements of the spots: {str(err).rstrip('.')}")
        return result


def _draw(
    result: Result, output: Path, plots: list[str], reporter: Predictor | None, layer: str, prog: str
) -> list[Path]:
    """Maps of genes, and a report if there is who explains it; their files."""
    from tcgn_hub.files import write_bytes
    from tcgn_hub.writing.figures import draw_gene, draw_mask
    from tcgn_hub.writing.report import mapped_genes, write_report

    written = []
    for gene in plots:
        written.append(output.with_suffix(f".{gene}.png" if layer == "value" else f".{gene}.{layer}.png"))
        write_bytes(written[-1], draw_gene(result, gene, layer=layer))
    if plots and result.slide is not None and result.slide.mask is not None:
        written.append(output.with_suffix(".tissue.png"))
        write_bytes(written[-1], draw_mask(result))
    if reporter:
        written.append(output.with_suffix(".html"))
        if reporter.backend.name != "torch":
            say(prog, "the report has no tiles with Grad-CAM, which needs weights of PyTorch")
        explained = [] if reporter.backend.name != "torch" else mapped_genes(result, layer=layer)[:_EXPLAINED]
        galleries = reporter.galleries(result, explained) if explained else ()
        write_report(written[-1], result, layer=layer, galleries=galleries)
    return written


main = command(build_parser, _predict, "tcgn-predict")

if __name__ == "__main__":
    sys.exit(main())
