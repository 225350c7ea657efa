"""The state of a run on disk: the latest, and the one before it should the latest be damaged."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from tcgn_hub.errors import OutputError, TrainingError
from tcgn_hub.files import writing
from tcgn_hub.text import option
from tcgn_hub.weights.convert import why_unread

_logger = logging.getLogger(__name__)
_LATEST, _PREVIOUS = "checkpoint.pt", "checkpoint.previous.pt"


def check_folder(folder: Path, *, resume: bool) -> None:
    """Refuse a folder that holds something else than a run to be continued."""
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} cannot be made a folder (it is a file).")
    if (folder / "metrics.json").exists():
        raise TrainingError(f"{folder} holds a finished run; give another folder.")
    if any((folder / name).exists() for name in (_LATEST, _PREVIOUS)):
        if not resume:
            raise TrainingError(
                f"{folder} holds an unfinished run; continue it with {option('resume', True)}, or give another folder."
            )
        return
    taken = [name for name in ("README.md", "config.json", "model.safetensors") if (folder / name).exists()]
    if taken:
        raise TrainingError(f"{folder} holds {', '.join(taken)} of something else; give another folder.")


def save_checkpoint(folder: Path, state: dict[str, Any]) -> bool:
    """Write the state of a run; a full disk is reported, and the run goes on with the one before; whether it was."""
    import torch

    try:
        with writing(folder / _LATEST) as part:
            torch.save(state, part)
            if (folder / _LATEST).exists():
                os.replace(folder / _LATEST, folder / _PREVIOUS)
    except (OutputError, RuntimeError) as err:
        # torch reports a full disk as a RuntimeError of its writer
        _logger.warning("The state of the run was not saved, training goes on: %s", err)
        return False
    return True


def load_checkpoint(folder: Path) -> dict[str, Any] | None:
    """The latest state of a run that can be read, None if it has saved none."""
    import torch

    damaged = []
    for name in (_LATEST, _PREVIOUS):
        path = folder / name
        if not path.exists():
            continue
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except Exception as err:  # noqa: BLE001 - of damage PyTorch says whatever comes of it
            damaged.append(path)
            _logger.warning("%s is damaged and left aside (%s).", path, why_unread(err))
    if damaged:
        raise TrainingError(
            f"{' and '.join(map(str, damaged))} cannot be read; delete the folder to start the run anew."
        )
    return None


def remove_checkpoints(folder: Path) -> None:
    """Remove the states of a run that has ended."""
    for name in (_LATEST, _PREVIOUS):
        (folder / name).unlink(missing_ok=True)
