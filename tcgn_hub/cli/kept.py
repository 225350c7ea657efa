"""What a run was asked for, kept in its folder while it lasts, so that ``--resume -o OUT`` says all there is to say."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tcgn_hub.errors import TcgnError, TrainingError
from tcgn_hub.files import make_folder, read_json, write_text

_NAME = "run.json"
_NOT_KEPT = ("resume", "output")
_PATHS = ("data", "expression", "metadata", "cache", "genes", "split", "weights", "teacher", "encoders")
_NAMED = ("genes", "split", "weights")  # that may also be names of this package
_EITHER = ("genes", "hvg")


def recall(args: argparse.Namespace) -> None:
    """Fill in what is not given, where ``--resume`` is, from what the folder keeps; refuse a run that misses anything.

    What is given takes the place of what is kept, and is compared by the run itself.
    """
    kept = _read(Path(args.output)) if args.resume else {}
    given = {name for name, value in vars(args).items() if value is not None and value != []}
    for name, value in kept.items():
        if name not in given and not (name in _EITHER and given.intersection(_EITHER)) and hasattr(args, name):
            setattr(args, name, value)
    missing = [] if args.data else ["the data"]
    if hasattr(args, "teacher"):
        missing += [] if args.teacher else ["--teacher"]
    elif all(getattr(args, name, None) is None for name in _EITHER):
        missing.append("--genes or --hvg" if hasattr(args, "hvg") else "--genes")
    if missing:
        at = f"{args.output} keeps no {_NAME} of a run that could be resumed" if args.resume else "A new run needs more"
        raise TrainingError(f"{at}: give {' and '.join(missing)}.")


@contextlib.contextmanager
def keeping(args: argparse.Namespace, *, afterwards: bool) -> Iterator[None]:
    """Keep in the folder what a run was asked for, from before it starts; ``afterwards``: also after it has ended.

    A run that is refused leaves the folder as it was.
    """
    folder = Path(args.output)
    path = folder / _NAME
    if int(os.environ.get("RANK", 0)):  # torchrun: the first process writes
        yield
        return
    before = path.read_text(encoding="utf-8") if path.exists() else None
    asked = {name: value for name, value in vars(args).items() if name not in _NOT_KEPT and value not in (None, [])}
    make_folder(folder)
    write_text(path, json.dumps({"folder": str(Path.cwd()), "asked": asked}, indent=1) + "\n")
    try:
        yield
    except TcgnError:
        if before is not None:
            write_text(path, before)
        elif not any(folder.rglob("checkpoint*.pt")):
            path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise
    if not afterwards:
        path.unlink(missing_ok=True)


def _read(folder: Path) -> dict[str, Any]:
    """What the run in a folder was asked for, its paths as they are named from here."""
    path = folder / _NAME
    if not path.exists():
        return {}
    try:
        kept = read_json(path)
        asked, began = dict(kept["asked"]), Path(kept["folder"])
    except (OSError, ValueError, KeyError, TypeError) as err:
        raise TrainingError(f"{path} is damaged ({err}); give the data and all options of the run again.") from err
    if began == Path.cwd():
        return asked
    return {name: _from_here(name, value, began) if name in _PATHS else value for name, value in asked.items()}


def _from_here(name: str, value: Any, began: Path) -> Any:
    from tcgn_hub.evaluation.splits import SPLITS
    from tcgn_hub.panels import PANELS
    from tcgn_hub.weights.manifest import load_manifest

    if isinstance(value, list):
        return [_from_here(name, item, began) for item in value]
    if str(value).startswith("local-dir:"):
        return "local-dir:" + _from_here("", value.removeprefix("local-dir:"), began)
    known = {*SPLITS, *PANELS, *load_manifest()} if name in _NAMED else ()
    return str(began / value) if value not in known and (began / value).exists() else value
