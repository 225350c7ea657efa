"""Model directories: ``config.json`` and ``model.safetensors`` in the layout that timm reads and the Hub stores."""

from __future__ import annotations

import copy
import logging
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tcgn_hub.errors import CheckpointError, OutputError, WeightsError
from tcgn_hub.files import read_json
from tcgn_hub.weights.hub import Resolved, refuse_unfinished, sha256_of
from tcgn_hub.weights.info import WeightsInfo

if TYPE_CHECKING:
    import torch
    from torch import nn

_logger = logging.getLogger(__name__)
_FILES = ("model.safetensors", "config.json")
STATED = ("panel", "units", "crop", "training_data", "held_out", "license", "origin")
"""What people may state of weights of their own, each as `WeightsInfo` has it."""
_NEEDED = ("units", "crop", "training_data", "license", "origin")
_TOLERANCE = 0.05  # of the largest output; float16 rounds weights to 0.05 %


def save_model_dir(model: nn.Module, folder: str | Path, info: WeightsInfo, *, half: bool = True) -> None:
    """Write a timm model as a model directory.

    Rounded weights are tried before they are kept: a number that float16 cannot hold, such as a variance above 65,504,
    would make every output 0 without a word. Tensors with such numbers stay in float32.
    """
    from safetensors import SafetensorError
    from timm.models import save_for_hf

    folder = Path(folder)
    saved = copy.deepcopy(model).cpu().eval()
    if half:
        _round(saved, info.name)
    stated = {key: value for key, value in info.to_json().items() if key not in ("name", "sha256")}
    if isinstance(stated["panel"], list):
        del stated["panel"]  # label_names has it
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".part-") as part:
            config = {"label_names": list(info.genes), "tcgn": stated}
            save_for_hf(saved, part, model_config=config, safe_serialization=True)
            for name in _FILES:
                os.replace(Path(part) / name, folder / name)
    except (OSError, SafetensorError) as err:
        raise OutputError(f"{folder} cannot be written ({getattr(err, 'strerror', None) or err}).") from err


def _round(model: nn.Module, name: str) -> None:
    """Round the tensors of a model to float16 where they survive it."""
    import torch

    x = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    x[1] = -2.0  # dark, beside noise
    with torch.inference_mode():
        expected = model.float()(x)
    kept = []
    tensors: list[tuple[str, torch.Tensor]] = [*model.named_parameters(), *model.named_buffers()]
    for key, tensor in tensors:
        if not tensor.is_floating_point():
            continue
        half = tensor.data.half()
        lost = (half == 0) & (tensor.data != 0) if key.endswith("running_var") else torch.zeros(())
        if half.isfinite().all() and not lost.any():
            tensor.data = half
        else:
            kept.append(key)
    if kept:
        _logger.warning("%s keeps %s in float32, for float16 cannot hold them.", name, ", ".join(kept))
    with torch.inference_mode():
        found = copy.deepcopy(model).float()(x)
    difference = (found - expected).abs().max()
    if not difference <= _TOLERANCE * expected.abs().max():
        raise CheckpointError(
            f"Rounded to float16 {name} gives other values (by up to {difference:.3g}); nothing was kept. Its weights"
            " may have diverged."
        )


def read_model_dir(folder: Path) -> dict[str, Any]:
    """The checked ``config.json`` of a model directory."""
    path = folder / "config.json"
    try:
        config = read_json(path)
        architecture, outputs = config["architecture"], config["num_classes"]
        # timm leaves out the names of no outputs
        genes = config["label_names"] if outputs else config.setdefault("label_names", [])
    except FileNotFoundError as err:
        refuse_unfinished(folder)
        raise WeightsError(f"{folder} is no model directory: it has no config.json.") from err
    except (OSError, ValueError, KeyError, TypeError) as err:
        raise WeightsError(f"{path} is not the configuration of a model of ours ({err!r}).") from err
    if not isinstance(genes, list) or not all(isinstance(gene, str) for gene in genes):
        raise WeightsError(f"{path} is not the configuration of a model of ours (label_names is no list of symbols).")
    if len(genes) != outputs:
        raise WeightsError(f"{path} names {len(genes)} genes in label_names for {outputs} outputs.")
    if not str(architecture).startswith(("tcgn_", "test_tcgn")):
        raise WeightsError(f"{path} is of architecture {architecture!r}, not of one of this package.")
    return config


def read_info(folder: Path, *, name: str, sha256: str = "") -> WeightsInfo:
    """What the ``config.json`` of a model directory states."""
    config = read_model_dir(folder)
    known: Mapping[str, Any] = {"genes": tuple(config["label_names"]), "architecture": config["architecture"]}
    stated = config.get("tcgn") or {}
    if not isinstance(stated, dict):
        raise WeightsError(f"{folder / 'config.json'} is not the configuration of a model of ours (tcgn is no object).")
    return WeightsInfo.from_json(stated, name=name, sha256=sha256, **known)


def info_of(found: Resolved) -> WeightsInfo | None:
    """What is known of weights beside their parameters, which are not read; None if nothing is stated."""
    if found.entry is not None:
        return found.entry.info
    folder = found.path.parent
    if not (folder / "config.json").is_file():
        return None
    return read_info(folder, name=str(folder) if Path(found.name).is_file() else found.name, sha256=found.sha256)


def manifest_entry(folder: str | Path, *, tag: str, bundled: bool = False) -> dict[str, Any]:
    """The entry of the manifest that describes a model directory, from its files and its ``tcgn`` block."""
    folder = Path(folder)
    stated = read_model_dir(folder).get("tcgn") or {}
    missing = [key for key in _NEEDED if key not in stated]
    if missing:
        raise WeightsError(
            f"{folder / 'config.json'} does not state {', '.join(missing)} in its block tcgn; add what is true there,"
            " named as in weights_manifest.json."
        )
    known = read_info(folder, name=tag).to_json()
    try:
        files = [
            {"name": name, "size": (folder / name).stat().st_size, "sha256": sha256_of(folder / name)}
            for name in _FILES
        ]
    except OSError as err:
        raise WeightsError(f"{err.filename} cannot be read ({err.strerror}).") from err
    return {
        "tag": tag,
        **{key: known[key] for key in known if key not in ("name", "architecture", "sha256")},
        "files": files,
        "bundled": bundled,
        "hub": {"repo_id": None, "revision": None},
    }
