"""tcgn predict, also installed as tcgn-predict: genes and values of patches and slides."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from dataclasses import fields
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
from tcgn_hub.progress import duration
from tcgn_hub.text import counted, some

if TYPE_CHECKING:
    from tcgn_hub.prediction.cohort.outputs import Outputs
    from tcgn_hub.result import Result

_SUFFIXES = {"table": ".txt", **{kind: f".{kind}" for kind in ("csv", "json", "h5ad", "parquet", "geojson", "zarr")}}
_OF_SLIDES = (".h5ad", ".parquet", ".geojson", ".zarr")  # a picture that is written so is taken as a slide

_NAMED = 24  # gene sets in a line

_LOADED = ("weights", "device", "precision", "compile", "backend")
_SHARED = ("min_quality", "significant_only", "tta", "batch_size")
_SCALE = ("mpp", "magnification", "patch_um", "force_scale")
_TILED = ("series", "stride_um", "spots", "library", "bin_um", "min_tissue", "features", "workers", "max_pixels")
_DRAWN = ("image", "plot", "map", "report", "bulk")
_SETS = ("signatures", "min_share")
_SHARED_OUT = ("scheduler", "local_workers", "shard", "retry_failed", "dry_run")


def build_parser(prog: str) -> argparse.ArgumentParser:
    """The arguments of tcgn predict."""
    parser = make_parser(
        prog,
        "Predict gene expression in the centre of H&E patches, or over the tissue of slides. -o is a file, or a folder"
        " for several slides; without it patches are shown as a table. What became of each slide of a folder is in its"
        " cohort.jsonl, so that the same command continues what was interrupted; see `tcgn cohort`.",
        epilog="A file of a slide format (.svs, .ndpi, .mrxs, .ome.tif, .ome.zarr, ...) is taken as a slide, and so is"
        " any picture where an option for slides is given. Exit code: 0 all predicted, 1 some images could not be, or"
        " show no tissue, 2 nothing was, for the reason printed.",
    )
    add(parser, "images", "genes", "top", *_SETS, "format", "output", *_LOADED, *_SHARED)
    add(parser.add_argument_group("scale", "read from the files where they state it"), *_SCALE, "strict")
    add(parser, "force")
    add(parser.add_argument_group("slides"), *_TILED, *_DRAWN)
    add(parser.add_argument_group("many slides"), *_SHARED_OUT)
    return parser


def _predict(args: argparse.Namespace, prog: str) -> int:
    from tcgn_hub.errors import ImageError, PanelError
    from tcgn_hub.images.readers import is_slide_file
    from tcgn_hub.prediction.patches import check_options

    if args.min_share is not None and args.signatures is None:
        raise PanelError("--min-share is of --signatures; give gene sets, or leave it out.")
    images = image_files(args)
    options = {"genes": panel_of(args), **given(args, (*_SHARED, *_SCALE, "force"))}
    check_options(**options)
    suffix = Path(args.output or "").suffix.lower()
    of_slides = given(args, (*_TILED, *_DRAWN, *_SHARED_OUT))
    as_slides = suffix in _OF_SLIDES or _SUFFIXES.get(args.format) in _OF_SLIDES or of_slides
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
    from tcgn_hub.prediction.cohort.outputs import files_of
    from tcgn_hub.prediction.patches import check_patches
    from tcgn_hub.prediction.predictor import check_weights
    from tcgn_hub.writing.tables import FORMATS, signature_facts, to_table

    output = Path(args.output) if args.output else None
    suffix = _suffix_of(output, args.format) if output else _SUFFIXES[args.format or "table"]
    asked = {"genes": options["genes"], **given(args, ("significant_only", "backend"))}
    info = check_weights(args.weights, **asked)
    check_patches(images, info=info, on_error="skip", **options)
    sets = _gene_sets(args, options, prog)
    began = monotonic()
    result = load_predictor(args, genes=options["genes"]).patches(images, on_error="skip", progress=True, **options)
    say_notes(prog, result)
    if result.left_out:
        say(prog, "left out: " + some(f"{name}, {why}" for name, why in result.left_out.items()))
    if sets:
        result = result.score(sets, **given(args, ("min_share",)))
        for line in signature_facts(result):
            say(prog, line)
    if args.top:
        result = result.top(args.top)
    if output is None:
        sys.stdout.writelines([to_table(result)] if suffix == ".txt" else FORMATS[suffix[1:]](result))
    else:
        result.write(output, format=suffix)
    code = say_failed(prog, result.failed.values())
    if output is not None:
        counts = _counts(result)
        say_done(
            prog, counted(len(result), "patch", "patches"), monotonic() - began, files_of(output, suffix), **counts
        )
    return code


def _predict_slides(slides: list[Path], options: dict[str, Any], args: argparse.Namespace, prog: str) -> int:
    from tcgn_hub.prediction.cohort.outputs import Outputs

    slides = _without_drawn(slides, args)
    outputs, suffix = _outputs(slides, args)
    options |= given(args, _TILED)
    if args.dry_run:
        return _plan(slides, options, args, prog)
    _check_slides(outputs, suffix, args)
    sets = _gene_sets(args, options, prog)
    plot = tuple(args.plot.split(",")) if args.plot else ()
    scored = {"signatures": sets or None, **given(args, ("min_share",))}
    wanted = Outputs(suffix or ".h5ad", plot, args.map, bool(args.report), args.image, **scored)
    wanted.check()
    if outputs[0] is not None and _is_cohort(outputs[0], slides, args):
        return _predict_cohort(slides, outputs[0].parent, wanted, options, args, prog)
    return _predict_alone(slides, outputs, wanted, options, args, prog)


def _without_drawn(slides: list[Path], args: argparse.Namespace) -> list[Path]:
    """Without the pictures that an earlier run has left among the slides, where they go into their own folder."""
    from tcgn_hub.prediction.cohort.ledger import NAME, Ledger

    folder = Path(args.output or "")
    if len(slides) < 2 or args.output is None or not (folder / NAME).is_file():
        return slides
    drawn = {(folder / name).resolve() for name in Ledger(folder).written}
    return [slide for slide in slides if slide.resolve() not in drawn] or slides


def _is_cohort(output: Path, slides: list[Path], args: argparse.Namespace) -> bool:
    """Whether what is written goes into a folder that several processes may share, or that has a ledger."""
    from tcgn_hub.prediction.cohort.ledger import NAME
    from tcgn_hub.prediction.cohort.shards import shard_of_job

    if len(slides) > 1:
        return True
    if output == Path(args.output) or args.spots:
        return False
    return bool(given(args, _SHARED_OUT)) or shard_of_job() is not None or (output.parent / NAME).exists()


def _predict_cohort(
    slides: list[Path], out: Path, wanted: Outputs, options: dict[str, Any], args: argparse.Namespace, prog: str
) -> int:
    """Several slides into a folder, each by whichever process comes to it."""
    from tcgn_hub.errors import ImageError, NoTissueError
    from tcgn_hub.prediction.cohort.ledger import DONE, NO_TISSUE, Ledger, Record
    from tcgn_hub.prediction.cohort.shards import shard_of_job
    from tcgn_hub.prediction.cohort.summary import write_summary

    start = monotonic()

    def told(record: Record) -> None:
        for note in record.notes:
            say(prog, f"{record.slide}: {note}")
        if record.error:
            say(prog, record.error)
            return
        ood = round((record.quality.get("ood") or 0) * record.tiles)
        counts = {"failed": record.failed_tiles, "notes": len(record.notes), "ood": ood}
        counts |= {"poor": record.poor_tiles, "left_out": record.left_out_tiles}
        files = [out / name for name in record.files]
        say_done(prog, f"{record.slide}: {counted(record.tiles, 'tile')}", record.seconds, files, **counts)

    predictor = load_predictor(args, genes=options["genes"], sets=wanted.signatures or ())
    shared: dict[str, Any] = given(args, ("local_workers", "shard", "retry_failed"))
    if args.scheduler:
        shared["client"] = args.scheduler
    elif not shared.get("local_workers") and "shard" not in shared and (of_job := shard_of_job()) is not None:
        say(prog, f"job {of_job[0] + 1} of {of_job[1]} of an array begins with its part of the slides")
        shared["shard"] = of_job
    drawn = {field.name: getattr(wanted, field.name) for field in fields(wanted)}
    options = {name: value for name, value in options.items() if value is not None}
    records = predictor.slides(slides, out, progress=True, told=told, **drawn, **shared, **options)
    done = [record for record in records if record.state == DONE]
    failed = [record for record in records if record.state != DONE]
    if len(failed) == len(slides):
        kind = NoTissueError if {record.state for record in failed} == {NO_TISSUE} else ImageError
        raise kind(f"None of {len(slides)} slides could be predicted: {failed[0].error}")
    tables = []
    if args.bulk and done:
        write_summary(Ledger(out), records, bulk=args.bulk)
        tables = [Path(args.bulk), Path(f"{args.bulk}.json")]
    what = f"{len(done)} of {counted(len(slides), 'slide')}, {counted(sum(record.tiles for record in done), 'tile')}"
    lost = sum(record.failed_tiles for record in done)
    say_done(prog, what, monotonic() - start, tables, failed=len(failed) + lost)
    return 1 if failed or lost else 0


def _predict_alone(
    slides: list[Path],
    outputs: list[Path] | list[None],
    wanted: Outputs,
    options: dict[str, Any],
    args: argparse.Namespace,
    prog: str,
) -> int:
    """A slide into a file, or slides of which only the pseudo-bulk is wanted."""
    from tcgn_hub.errors import ImageError, NoTissueError
    from tcgn_hub.prediction.cohort.outputs import state_of
    from tcgn_hub.prediction.predictor import check_resume
    from tcgn_hub.prediction.slides import check_slide
    from tcgn_hub.writing.bulk import BulkTable, bulk_row

    for slide, output in zip(slides, outputs, strict=True):
        if output and slide.exists() and state_of(output).exists():
            loaded = given(args, ("weights", "device", "precision", "backend"))
            check_resume(slide, resume=state_of(output), **loaded, **options)
    if len(slides) == 1:
        check_slide(slides[0], **options)
    predictor = load_predictor(args, genes=options["genes"], sets=wanted.signatures or ())
    wanted = wanted.drawn(predictor, options["genes"], significant_only=bool(args.significant_only))
    bulk = BulkTable(args.bulk) if args.bulk else None
    failed: list[str] = []
    kinds: list[type[ImageError]] = []
    done = tiles = 0
    start = monotonic()
    for slide, output in zip(slides, outputs, strict=True):
        began, written = monotonic(), list[Path]()
        try:
            result = predictor.slide(slide, resume=output and state_of(output), progress=True, **options)
        except ImageError as err:
            if len(slides) == 1:
                raise
            failed.append(str(err))
            kinds.append(type(err))
            continue
        say_notes(prog, result)
        if output:
            written, said = wanted.write(result, output, predictor=predictor, options=options)
            for line in said:
                say(prog, line)
            shutil.rmtree(state_of(output), ignore_errors=True)
        if bulk:
            bulk.add(bulk_row(result))
        failed += result.failed.values()
        say_done(prog, f"{slide}: {counted(len(result), 'tile')}", monotonic() - began, written, **_counts(result))
        done, tiles = done + 1, tiles + len(result)
    if not done:
        kind = NoTissueError if set(kinds) == {NoTissueError} else ImageError
        raise kind(f"None of {len(slides)} slides could be predicted: {failed[0]}")
    if bulk:
        bulk.write()
    code = say_failed(prog, failed)
    if bulk:
        what = f"{done} of {counted(len(slides), 'slide')}, {counted(tiles, 'tile')}"
        tables = [Path(args.bulk), Path(f"{args.bulk}.json")]
        say_done(prog, what, monotonic() - start, tables, failed=len(failed))
    return code


def _plan(slides: list[Path], options: dict[str, Any], args: argparse.Namespace, prog: str) -> int:
    """What would be predicted, a line a slide on stdout, and what time and room it would take."""
    from tcgn_hub.errors import ImageError
    from tcgn_hub.prediction.cohort.preflight import Planned, bytes_per_tile, plan, seconds_per_tile
    from tcgn_hub.prediction.predictor import check_weights
    from tcgn_hub.progress import Progress
    from tcgn_hub.text import aligned

    info = check_weights(args.weights, genes=options["genes"], **given(args, ("significant_only", "backend")))
    sets = _gene_sets(args, options, prog)
    if info is None:
        info = load_predictor(args, sets=sets).info
    planned = list(Progress(len(slides), "slide").over(plan(slides, info, **options)))
    cells = [["slide", "tiles", "tissue", "um/px", "scale from"]]

    def row(one: Planned) -> list[str]:
        if one.error:
            return [one.slide, "-", "-", "-", one.error]
        tissue = "-" if one.tissue is None else f"{100 * one.tissue:.0f} %"
        return [one.slide, str(one.tiles), tissue, f"{one.mpp:.4g}", one.scale_source]

    sys.stdout.write(aligned(cells + [row(one) for one in planned], left=(0, 4)))
    good = [one for one in planned if not one.error]
    if not good:
        raise ImageError(f"By --dry-run none of {len(slides)} slides can be predicted: {planned[0].error}")
    tta, predictor = args.tta or 1, load_predictor(args, genes=options["genes"], sets=sets)
    tiles = sum(one.tiles for one in good)
    seconds = tiles * seconds_per_tile(predictor, tta=tta, batch_size=args.batch_size)
    genes = len(predictor.info.columns(options["genes"], significant_only=bool(args.significant_only)))
    room = tiles * bytes_per_tile(genes, features=bool(args.features), tta=tta)
    room += sum(one.beside for one in good)
    say(
        prog,
        f"{len(good)} of {counted(len(slides), 'slide')}, {counted(tiles, 'tile')}: about {duration(seconds)} by one"
        f" process like this one, and at most {room / 1e6:,.0f} MB as .h5ad",
    )
    return 1 if len(good) < len(slides) else 0


def _gene_sets(args: argparse.Namespace, options: dict[str, Any], prog: str) -> dict[str, list[str]]:
    """The gene sets that are asked for, once it is said how much of each is predicted; none if none are."""
    if args.signatures is None:
        return {}
    from tcgn_hub.panels.gene_sets import load_gene_sets, require_decoupler
    from tcgn_hub.prediction.predictor import check_weights
    from tcgn_hub.result import scorable

    sets, asked = load_gene_sets(args.signatures), {"genes": options["genes"], **given(args, ("significant_only",))}
    require_decoupler()
    info = check_weights(args.weights, **asked, **given(args, ("backend",))) or load_predictor(args, sets=sets).info
    genes = [info.genes[i] for i in info.columns(**asked).values()]
    scored, refused = scorable(info, sets, genes, **given(args, ("min_share",)))
    for signature in scored:
        say(prog, signature)
    if refused:
        say(prog, f"too few genes to score: {some(map(str, refused), _NAMED)}")
    return sets


def _counts(result: Result) -> dict[str, int]:
    """What a summary warns of."""
    is_ood = result.is_ood
    ood = 0 if is_ood is None else int(is_ood.sum())
    counts = {"failed": len(result.failed), "notes": len(result.notes), "ood": ood}
    return counts | {"poor": sum((result.poor or {}).values()), "left_out": len(result.left_out)}


def _suffix_of(output: Path, asked: str | None, *, check: bool = True) -> str:
    """The suffix of the format of a file; ``check``: whether it has to be one that can be written."""
    import tcgn_hub.writing  # noqa: F401  (the formats)
    from tcgn_hub.errors import OutputError
    from tcgn_hub.result import format_of

    own, wanted = output.suffix.lower(), _SUFFIXES.get(asked or "")
    as_text = own == ".txt" and wanted in (".csv", ".json")
    if wanted and own in _SUFFIXES.values() and own != wanted and not as_text:
        raise OutputError(f"--format {asked} does not go with {output}; leave it out, or let the name end in {wanted}.")
    if check:
        _check_place(output, wanted or own)
    return format_of(output, wanted)


def _check_place(file: Path, suffix: str = "") -> None:
    from tcgn_hub.errors import OutputError
    from tcgn_hub.writing.spatialdata import check_replaced

    if not file.parent.is_dir():
        raise OutputError(f"{file} cannot be written: there is no folder {file.parent}.")
    if suffix == ".zarr":
        check_replaced(file)
    elif file.is_dir():
        raise OutputError(f"{file} cannot be written: it is a folder.")


def _outputs(slides: list[Path], args: argparse.Namespace) -> tuple[list[Path] | list[None], str]:
    """Where each slide's tiles go, None if nowhere, and the suffix of their format."""
    from tcgn_hub.errors import OutputError

    if args.output is None:
        return [None] * len(slides), ""
    output = Path(args.output)
    is_store = output.suffix.lower() == ".zarr"  # a folder that is written as one
    to_file = bool(output.suffix) and (is_store or not output.is_dir())
    if to_file and len(slides) == 1:
        return [output], _suffix_of(output, args.format)
    if to_file and output.suffix.lower() in _SUFFIXES.values():
        raise OutputError(f"{output} is one file, but there are {len(slides)} slides; give a folder.")
    suffix = _SUFFIXES[args.format or "h5ad"]
    outputs = in_folder(output, slides, suffix, make=not args.dry_run)
    if args.dry_run:
        return outputs, suffix
    # of many slides those that are done are not written again, whatever others have added to them
    return outputs, _suffix_of(outputs[0], args.format, check=len(slides) == 1)


def _check_slides(outputs: Sequence[Path | None], suffix: str, args: argparse.Namespace) -> None:
    """Refuse, before anything is loaded, what cannot be done or would do nothing."""
    from tcgn_hub.errors import OutputError, SectionError

    if args.top:
        raise OutputError("--top is for patches: all genes of a slide's tiles are written; choose some by --genes.")
    if args.spots and len(outputs) > 1:
        raise SectionError("--spots belongs to one slide; give one.")
    if args.spots and given(args, ("stride_um", "min_tissue")):
        raise SectionError("--stride-um and --min-tissue are of a grid of tiles; leave them out, or --spots.")
    for name in ("library", "bin_um"):
        if given(args, (name,)) and not args.spots:
            raise SectionError(f"--{name.replace('_', '-')} is of a file of spots; give --spots, or leave it out.")
    if outputs[0] is None:
        if not args.bulk:
            message = "Say where to write the tiles: -o FILE for one slide, -o DIR for several, or --bulk FILE."
            raise OutputError(message)
        if given(args, ("plot", "report", "image", "features", "format", *_SETS, *_SHARED_OUT)):
            raise OutputError(
                "--plot, --report, --image, --features, --format, --signatures and the options for many slides are of"
                " what is written of the tiles; give -o."
            )
    elif given(args, _SHARED_OUT) and (args.spots or outputs[0] == Path(args.output)):
        option = next(iter(given(args, _SHARED_OUT))).replace("_", "-")
        raise OutputError(f"--{option} is for slides that go into a folder, without --spots; leave it out.")
    sources = [Path(source) for source in (*args.images, args.spots) if source]
    for output in filter(None, outputs):
        for source in sources:
            if output.resolve() in (source.resolve(), *source.resolve().parents):
                raise OutputError(f"{output} cannot be written: {source} is read from it; give another name.")
    if args.bulk:
        _check_place(Path(args.bulk))
    if args.features and suffix not in (".h5ad", ".zarr"):
        raise OutputError("--features are kept in an .h5ad or .zarr only; give -o a name that ends so.")


main = command(build_parser, _predict, "tcgn-predict")

if __name__ == "__main__":
    sys.exit(main())
