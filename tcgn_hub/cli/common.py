"""What all commands share: their parsers, errors in one sentence, the log, and exit codes."""

from __future__ import annotations

import argparse
import contextlib
import glob
import io
import logging
import os
import sys
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tcgn_hub.cli.options import given
from tcgn_hub.errors import NoTissueError, TcgnError
from tcgn_hub.files import read_json
from tcgn_hub.progress import duration
from tcgn_hub.text import counted, on_command_line, one_line, some

if TYPE_CHECKING:
    from tcgn_hub.data.sections import Section
    from tcgn_hub.prediction.predictor import Predictor
    from tcgn_hub.result import Result

_NAMED = 8  # files that a summary names, before it counts the others


# whose warnings go into our own errors
_OUTSPOKEN = (r"PIL\.", "tifffile", "pydicom", r"zarr\.", r"torch\.", r"timm\.")


def make_parser(prog: str, description: str, *, epilog: str | None = None) -> argparse.ArgumentParser:
    """A parser that knows ``--version``."""
    from tcgn_hub import __version__

    parser = argparse.ArgumentParser(prog=prog, description=description, epilog=epilog)
    parser.add_argument("--version", action="version", version=f"{prog} {__version__}")
    return parser


def command(
    build_parser: Callable[[str], argparse.ArgumentParser], act: Callable[[argparse.Namespace, str], int], name: str
) -> Callable[..., int]:
    """The ``main(argv, prog=)`` of a command, which returns its exit code."""

    def main(argv: Sequence[str] | None = None, *, prog: str = name) -> int:
        with escaping():
            args = build_parser(prog).parse_args(argv)
            return run(lambda: act(args, prog), prog)

    return main


def run(command: Callable[[], int], name: str) -> int:
    """Run a command; 2 and one sentence on stderr for an error of the user's, 130 after Ctrl-C."""
    asked = on_command_line.set(True)
    try:
        with log_to_stderr():
            code = command()
        sys.stdout.flush()
        return code
    except TcgnError as err:
        say(name, err)
        return 1 if isinstance(err, NoTissueError) else 2
    except KeyboardInterrupt as err:
        print(f"{name}: interrupted{f'; {err}' if err.args else ''}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # the reader, such as head, has seen enough; keep the interpreter from complaining at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    finally:
        on_command_line.reset(asked)


@contextlib.contextmanager
def escaping() -> Iterator[None]:
    """While this lasts, stdout escapes what its encoding lacks, as stderr always does: a path in another script."""
    stream = sys.stdout
    if not isinstance(stream, io.TextIOWrapper):
        yield
        return
    before = stream.errors
    stream.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        stream.reconfigure(errors=before)


@contextlib.contextmanager
def log_to_stderr() -> Iterator[None]:
    """While this lasts, the package's log is shown as it is, and no warning of a library that reads damaged files."""
    logger = logging.getLogger("tcgn_hub")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        with warnings.catch_warnings():
            for library in _OUTSPOKEN:
                warnings.filterwarnings("ignore", module=library)
            yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def image_files(args: argparse.Namespace) -> list[Path]:
    """The files that are meant, those of folders and of patterns that the shell left among them."""
    from tcgn_hub.errors import ImageError
    from tcgn_hub.images.finding import find_images

    # a file may have the characters of a pattern in its name
    found = find_images(
        match
        for name in args.images
        for match in ([name] if os.path.exists(name) else sorted(glob.glob(name)) or [name])
    )
    if not any(path.exists() for path in found):
        raise ImageError(f"{found[0]} does not exist.")
    return found


def in_folder(folder: Path, images: Sequence[Path], ending: str, *, make: bool = True) -> list[Path]:
    """A file for each image in a folder, which is made, unless nothing is written yet."""
    from tcgn_hub.errors import OutputError
    from tcgn_hub.files import make_folder

    names = [image.name for image in images]
    if len(set(names)) < len(names):
        raise OutputError(f"Two of the images are named {max(names, key=names.count)}; give them folders of their own.")
    if make:
        make_folder(folder)
    return [folder / f"{name}{ending}" for name in names]


def say(prog: str, message: object) -> None:
    """One line on stderr, whatever the names in it."""
    print(f"{prog}: {one_line(str(message))}", file=sys.stderr)


def say_notes(prog: str, result: Result) -> None:
    """What was done that the user may not expect, a line each."""
    for note, names in result.notes.items():
        say(prog, f"{some(names, 1)}: {note}")


def say_failed(prog: str, failed: Collection[str]) -> int:
    """What could not be done, on stderr; the exit code."""
    for message in failed:
        say(prog, message)
    return 1 if failed else 0


def say_done(
    prog: str,
    what: str,
    seconds: float,
    written: Collection[Path],
    *,
    failed: int = 0,
    notes: int = 0,
    ood: int = 0,
    poor: int = 0,
    left_out: int = 0,
) -> None:
    """What was done, how long it took, and where it is; ``failed`` and ``notes`` were said before."""
    parts = [f"{what} in {duration(seconds)}"]
    parts += [f"{ood} out of distribution"] if ood else []
    parts += [f"{poor} of poor quality"] if poor else []
    parts += [f"{left_out} left out for their quality"] if left_out else []
    parts += [f"{failed} failed"] if failed else []
    parts += [counted(notes, "warning")] if notes else []
    parts += [f"written to {some(map(str, written), _NAMED)}"] if written else []
    say(prog, ", ".join(parts))


def patch_options(args: argparse.Namespace) -> dict[str, Any]:
    """How patches are to be cut out."""
    strict = {"scale": "strict"} if args.strict else {}
    return {**given(args, ("mpp", "magnification", "patch_um", "force_scale", "force")), **strict}


def panel_of(args: argparse.Namespace) -> Any:
    """Symbols that are asked for by a list with commas, a file or the name of a panel, or `ALL`; None if none are."""
    from tcgn_hub.panels import ALL, load_panel, parse_genes

    return args.genes if args.genes in (None, ALL) else load_panel(parse_genes(args.genes))


def sections_of(args: argparse.Namespace) -> list[Section]:
    """The sections that are asked for."""
    from tcgn_hub.data.readers import read_sections
    from tcgn_hub.errors import SectionError

    options: dict[str, Any] = {"names": args.sections, "expression": args.expression, "mpp": args.mpp}
    options |= given(args, ("bin_um", "force_scale"))
    sections = read_sections(args.data if len(args.data) > 1 else args.data[0], **options)
    names = [section.name for section in sections]
    unknown = [name for name in args.allow_seen or () if name not in names]
    if unknown:
        raise SectionError(f"--allow-seen names {', '.join(unknown)}, but the sections are {', '.join(names)}.")
    return sections


def metadata_of(args: argparse.Namespace) -> dict[str, Any]:
    """What the user wants stated of the weights."""
    if args.metadata is None:
        return {}
    from tcgn_hub.errors import TrainingError
    from tcgn_hub.weights.model_dir import STATED

    try:
        metadata = read_json(Path(args.metadata))
    except (OSError, ValueError) as err:
        raise TrainingError(f"The metadata {args.metadata} cannot be read as JSON ({err}).") from err
    unknown = sorted(set(metadata) - set(STATED)) if isinstance(metadata, dict) else ["which is no object"]
    if unknown:
        raise TrainingError(f"{args.metadata} states {', '.join(unknown)}; what can be stated is {', '.join(STATED)}.")
    return metadata


def load_predictor(args: argparse.Namespace, *, genes: Any = None, sets: Collection[str] = ()) -> Predictor:
    """The weights that are asked for, read once, if they predict these genes, and those that are to be drawn.

    ``sets``: names of gene sets, which may be drawn as well.
    """
    from tcgn_hub.prediction.predictor import check_weights, load
    from tcgn_hub.weights.hub import locate

    plot = given(args, ("plot",)).get("plot")
    for asked in (genes, (plot and [name for name in plot.split(",") if name not in sets]) or None):
        check_weights(args.weights, genes=asked, **given(args, ("backend",)))
    return load(**locate(args.weights), **given(args, ("device", "precision", "compile", "backend")))
