"""Model directories: ``config.json`` and ``model.safetensors`` in the layout that timm reads and the Hub stores."""

from __future__ import annotations

import copy
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tcgn_hub.errors import WeightsError
from tcgn_hub.weights.cache import sha256_of

if TYPE_CHECKING:
    from torch import nn

__all__ = ["manifest_entry", "read_model_dir", "save_model_dir"]

_FILES = ("model.safetensors", "config.json")
FACTS = ("panel", "units", "crop", "training_data", "held_out", "license", "origin")
"""What the block ``tcgn`` of a ``config.json`` may state, each as in the manifest."""


def save_model_dir(
    model: nn.Module,
    folder: str | Path,
    *,
    genes: Sequence[str],
    facts: dict[str, Any] | None = None,
    half: bool = True,
) -> None:
    """Write a timm model as a model directory.

    Args:
        model: A model made by `timm.create_model`, one output per gene.
        folder: Where to write; files of these names are replaced.
        genes: Symbols in the order of the outputs, kept as ``label_names``.
        facts: What else is known, kept as the block ``tcgn`` of ``config.json``: units, crop, training data, held-out
            metrics, named as in the manifest.
        half: Write the weights in float16, and otherwise as they are.
    """
    from timm.models import save_for_hf

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    saved = copy.deepcopy(model).cpu()
    if half:
        saved = saved.half()
    config = {"label_names": list(genes), "tcgn": facts or {}}
    with tempfile.TemporaryDirectory(dir=folder, prefix=".part-") as part:
        save_for_hf(saved, part, model_config=config, safe_serialization=True)
        for name in _FILES:
            os.replace(Path(part) / name, folder / name)


def read_model_dir(folder: Path) -> dict[str, Any]:
    """The checked ``config.json`` of a model directory.

    Raises:
        WeightsError: The file is missing or malformed, or does not name one gene per output.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        genes, architecture, outputs = config["label_names"], config["architecture"], config["num_classes"]
    except FileNotFoundError as err:
        raise WeightsError(f"{folder} is no model directory: it has no config.json.") from err
    except (OSError, ValueError, KeyError, TypeError) as err:
        raise WeightsError(f"{path} is not the configuration of a model of ours ({err!r}).") from err
    if not isinstance(genes, list) or len(genes) != outputs:
        raise WeightsError(f"{path} names {len(genes)} genes in label_names for {outputs} outputs.")
    if not str(architecture).startswith(("tcgn_", "test_tcgn")):
        raise WeightsError(f"{path} is of architecture {architecture!r}, not of one of this package.")
    return config


def manifest_entry(folder: str | Path, *, tag: str, bundled: bool = False) -> dict[str, Any]:
    """The entry of the manifest that describes a model directory, from its files and its ``tcgn`` block.

    Raises:
        WeightsError: The folder is no model directory, or a fact that the manifest needs is not stated in it.
    """
    folder = Path(folder)
    config = read_model_dir(folder)
    facts = {"panel": config["label_names"], "held_out": {}, **config.get("tcgn", {})}
    missing = [key for key in FACTS if key not in facts]
    if missing:
        raise WeightsError(
            f"{folder / 'config.json'} does not state {', '.join(missing)} in its block tcgn; add what is true there,"
            " named as in weights_manifest.json."
        )
    return {
        "tag": tag,
        **{key: facts[key] for key in FACTS[:-2]},
        "files": [
            {"name": name, "size": (folder / name).stat().st_size, "sha256": sha256_of(folder / name)}
            for name in _FILES
        ],
        "bundled": bundled,
        "hub": {"repo_id": None, "revision": None},
        "license": facts["license"],
        "origin": facts["origin"],
    }
