"""Where architecture and weights meet: loading by tag, folder or file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
from torch import nn

from tcgn_hub.errors import CheckpointError, TcgnError, WeightsError
from tcgn_hub.models.tcgn import TCGN
from tcgn_hub.panels import PANELS, load_panel
from tcgn_hub.weights.convert import read_parameters
from tcgn_hub.weights.download import fetch_folder
from tcgn_hub.weights.info import WeightsInfo
from tcgn_hub.weights.manifest import Weights, load_manifest
from tcgn_hub.weights.model_dir import read_model_dir
from tcgn_hub.weights.resolve import Resolved, not_imported, resolve

__all__ = ["create_model", "load_model"]

_HUB = "hf-hub:"


def create_model(
    model_name: str, *, pretrained: bool = False, cache_dir: str | Path | None = None, **kwargs: Any
) -> nn.Module:
    """`timm.create_model` for those who would forget to import this package, with every download verified.

    Args:
        model_name: As in timm: 'tcgn_base', a tag, 'hf-hub:organisation/name' with an optional '@revision', or
            'local-dir:folder'.
        pretrained: Load weights.
        cache_dir: Where to keep downloads.
        **kwargs: As in timm: ``num_classes``, ``in_chans``, ``features_only``, ...

    Raises:
        WeightsError: The weights cannot be had, or are not what the manifest or the Hub says.
        CheckpointError: The parameters do not fit the architecture.
    """
    if model_name.startswith(_HUB):
        model_name = f"local-dir:{_hub_folder(model_name, cache_dir)}"
    return timm.create_model(model_name, pretrained=pretrained, cache_dir=cache_dir, **kwargs)


def _hub_folder(name: str, cache_dir: str | Path | None) -> Path:
    """The verified files of a repository of ours."""
    repo_id, _, revision = name.removeprefix(_HUB).partition("@")
    folder = fetch_folder(repo_id, revision or None, ("config.json", "model.safetensors"), cache_dir=cache_dir)
    for entry in load_manifest().values():
        file = entry.model_file
        if file and (entry.hub["repo_id"], entry.hub["revision"]) == (repo_id, revision):
            found = resolve(folder / file.name)
            if found.sha256 != file.sha256:
                raise WeightsError(
                    f"{found.path} is not the file the manifest lists for {entry.tag} (its sha256 differs)."
                )
    read_model_dir(folder)
    return folder


def load_model(
    weights: str | Path | None = None, *, device: str | None = None, cache_dir: str | Path | None = None
) -> tuple[TCGN, WeightsInfo]:
    """A model in eval mode with its genes, units and held-out significance.

    Args:
        weights: A tag of the manifest, 'hf-hub:organisation/name', a model directory, or a file of parameters: one
            that lies in a model directory, or a published checkpoint of a panel of this package. The default weights if
            None.
        device: Where to put the model; the CPU if None.
        cache_dir: Where to keep downloads.

    Raises:
        WeightsError: The weights cannot be found, had, read or verified, or nothing says which genes they predict.
        CheckpointError: The parameters do not fit the architecture.
    """
    if weights is None:
        weights = next(iter(load_manifest()))
    if isinstance(weights, str) and weights.startswith(_HUB):
        model, info = _load_folder(weights, resolve(_hub_folder(weights, cache_dir)))
    else:
        resolved = resolve(weights, cache_dir=cache_dir)
        if resolved.weights is not None:
            model, info = _load_entry(resolved.weights, cache_dir)
        elif (resolved.path.parent / "config.json").is_file():
            folder = Path(weights) if Path(weights).is_dir() else resolved.path.parent
            model, info = _load_folder(str(folder), resolved)
        else:
            model, info = _load_published(resolved)
    return model.eval().to(device or "cpu"), info


def _load_entry(entry: Weights, cache_dir: str | Path | None) -> tuple[TCGN, WeightsInfo]:
    file = entry.model_file
    if file is None:
        raise not_imported(entry)
    if entry.scope == "trunk":
        raise WeightsError(f"{entry.tag} predicts no genes; it is a start for fine-tuning.")
    model: Any = timm.create_model(entry.tag, pretrained=True, cache_dir=cache_dir)
    return model, WeightsInfo(
        name=entry.tag,
        genes=entry.genes,
        units=entry.units,
        sha256=file.sha256,
        held_out=entry.held_out,
        crop=entry.crop,
        training_data={key: value for key, value in entry.training_data.items() if key != "features"},
        ood=entry.training_data.get("features"),
    )


def _load_folder(name: str, resolved: Resolved) -> tuple[TCGN, WeightsInfo]:
    config = read_model_dir(resolved.path.parent)
    genes = tuple(config["label_names"])
    model = _read(
        config["architecture"], resolved.path, num_classes=len(genes), pretrained_cfg_overlay={"label_names": genes}
    )
    facts = config.get("tcgn", {})
    return model, WeightsInfo.from_json(facts, name=name, genes=genes, sha256=resolved.sha256)


def _load_published(resolved: Resolved) -> tuple[TCGN, WeightsInfo]:
    panels = {len(genes): tuple(genes) for genes in map(load_panel, PANELS)}
    for size, genes in panels.items():
        try:
            model = _read(
                "tcgn_base",
                resolved.path,
                num_classes=size,
                pretrained_cfg_overlay={"label_names": genes, "num_classes": size},
            )
        except _OtherPanelError:
            continue
        units = "log10(1 + 10^4 count / sum of the panel's counts)"
        return model, WeightsInfo(name=str(resolved.path), genes=genes, units=units, sha256=resolved.sha256)
    raise WeightsError(
        f"{resolved.path} predicts a number of genes that no panel of this package has; name them with"
        " `tcgn weights import FILE --tag tcgn_base.NAME --genes FILE`."
    )


class _OtherPanelError(TcgnError):
    """The file's classifier has another number of outputs."""


def _read(architecture: str, file: Path, **kwargs: Any) -> TCGN:
    state_dict = read_parameters(file)
    last = next((state_dict[key] for key in ("head.2.bias", "head.fc.bias") if key in state_dict), None)
    if last is not None and len(last) != kwargs["num_classes"]:
        raise _OtherPanelError(
            f"{file} predicts {len(last)} genes, but {kwargs['num_classes']} are named for it in config.json."
        )
    overlay = {**kwargs.pop("pretrained_cfg_overlay"), "state_dict": state_dict, "num_classes": kwargs["num_classes"]}
    try:
        model: Any = timm.create_model(architecture, pretrained=True, pretrained_cfg_overlay=overlay, **kwargs)
    except CheckpointError as err:
        raise CheckpointError(f"{file}: {err}") from err
    # timm keeps the overlay, and with it a second copy of all parameters
    model.pretrained_cfg.pop("state_dict", None)
    return model
