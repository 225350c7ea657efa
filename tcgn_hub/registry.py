"""Where architecture and weights meet: the names timm knows of this package, and loading by tag, folder or file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model

from tcgn_hub.data.panels import PANELS, load_panel
from tcgn_hub.errors import CheckpointError, ManifestError, TcgnError, WeightsError
from tcgn_hub.models.tcgn import TCGN, checkpoint_filter_fn
from tcgn_hub.weights.manifest import find_weights, load_manifest
from tcgn_hub.weights.model_dir import read_model_dir
from tcgn_hub.weights.resolve import resolve, sha256_of

__all__ = ["ModelInfo", "load_model", "tcgn_base"]


def _cfg(**kwargs: Any) -> dict[str, Any]:
    return {
        "num_classes": 785,
        "input_size": (3, 224, 224),
        "fixed_input_size": True,
        "pool_size": (7, 7),
        "crop_pct": 1.0,
        "crop_mode": "squash",
        "interpolation": "bilinear",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "stem.conv1",
        "classifier": "head.fc",
        **kwargs,
    }


default_cfgs = generate_default_cfgs(
    {
        **{
            weights.tag: _cfg(
                num_classes=len(weights.genes),
                label_names=weights.genes,
                file=str(weights.folder / weights.model_file.name) if weights.bundled else None,
                hf_hub_id=None if weights.bundled else weights.hub["repo_id"],
                license=weights.license,
            )
            for weights in load_manifest().values()
        },
        "tcgn_base.untrained": _cfg(),
    }
)


@register_model
def tcgn_base(pretrained: bool = False, **kwargs: Any) -> TCGN:
    """TCGN as published: a CMT-Tiny trunk and two graph branches, 22.5 million parameters.

    Weights of the manifest are verified by sha256 before they are read; a source named in ``pretrained_cfg_overlay``
    is read as it is.
    """
    if pretrained:
        kwargs["pretrained_cfg_overlay"] = _verified_source(
            "tcgn_base", kwargs.get("pretrained_cfg"), kwargs.get("pretrained_cfg_overlay")
        )
    model: Any = build_model_with_cfg(
        TCGN,
        "tcgn_base",
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"out_indices": (0, 1, 2, 3), "feature_cls": "getter"},
        **kwargs,
    )
    labels = model.pretrained_cfg.get("label_names")
    if labels and getattr(model, "num_classes", len(labels)) != len(labels):
        # names of other outputs would be wrong names
        del model.pretrained_cfg["label_names"]
    return model


def _verified_source(architecture: str, cfg: Any, overlay: dict[str, Any] | None) -> dict[str, Any]:
    """The overlay with the verified file of our own weights, unless another source was named."""
    overlay = dict(overlay or {})
    if any(overlay.get(key) for key in ("source", "state_dict", "file", "hf_hub_id", "url")):
        # the file of our cfg would win over a weaker source that the user asked for
        overlay.setdefault("file", None)
        return overlay
    if cfg is not None and not isinstance(cfg, str):
        return overlay
    overlay["file"] = str(resolve(find_weights(f"{architecture}.{cfg}" if cfg else architecture)))
    return overlay


@dataclass(frozen=True)
class ModelInfo:
    """What is known of a loaded model.

    Attributes:
        name: Tag, folder or file it was loaded from.
        genes: Symbols in the order of the outputs.
        units: Units of the outputs.
        sha256: Of the file of parameters.
        pcc: Held-out correlation of each gene, None if it was not measured.
        reliable: Genes predicted better than chance on held-out tissue, None if it was not measured.
    """

    name: str
    genes: tuple[str, ...]
    units: str
    sha256: str
    pcc: dict[str, float] | None
    reliable: frozenset[str] | None


def load_model(weights: str | Path | None = None, *, device: str | None = None) -> tuple[TCGN, ModelInfo]:
    """A model in eval mode with its genes, units and held-out reliability.

    Args:
        weights: A tag of the manifest, a model directory, or a file of parameters: one that lies in a model directory,
            or a published checkpoint of a panel of this package. The default weights if None.
        device: Where to put the model; the CPU if None.

    Raises:
        WeightsError: The weights cannot be found, read or verified, or nothing says which genes they predict.
        CheckpointError: The parameters do not fit the architecture.
    """
    if weights is None:
        weights = next(iter(load_manifest()))
    path = Path(weights)
    if path.is_dir():
        model, info = _load_folder(path, path / "model.safetensors")
    elif path.is_file() and (path.parent / "config.json").is_file():
        model, info = _load_folder(path.parent, path)
    elif path.is_file():
        model, info = _load_published(path)
    else:
        try:
            find_weights(str(weights))
        except ManifestError as err:
            raise WeightsError(f"There is no folder or file {weights}, and no such tag: {err}") from err
        model, info = _load_tag(str(weights))
    return model.eval().to(device or "cpu"), info


def _load_tag(tag: str) -> tuple[TCGN, ModelInfo]:
    entry = find_weights(tag)
    model: Any = timm.create_model(entry.tag, pretrained=True)
    return model, _info(entry.tag, entry.genes, entry.units, entry.model_file.sha256, entry.held_out)


def _load_folder(folder: Path, file: Path) -> tuple[TCGN, ModelInfo]:
    config = read_model_dir(folder)
    genes = config["label_names"]
    model = _read_parameters(
        config["architecture"], file, num_classes=len(genes), pretrained_cfg_overlay={"label_names": tuple(genes)}
    )
    facts = config.get("tcgn", {})
    return model, _info(
        str(folder), tuple(genes), facts.get("units", "not stated"), sha256_of(file), facts.get("held_out", {})
    )


def _load_published(file: Path) -> tuple[TCGN, ModelInfo]:
    panels = {len(genes): tuple(genes) for genes in map(load_panel, PANELS)}
    for size, genes in panels.items():
        try:
            model = _read_parameters(
                "tcgn_base", file, num_classes=size, pretrained_cfg_overlay={"label_names": genes, "num_classes": size}
            )
        except _OtherPanelError:
            continue
        return model, _info(str(file), genes, "log10(1 + 10^4 count / sum of the panel's counts)", sha256_of(file), {})
    raise WeightsError(
        f"{file} predicts a number of genes that no panel of this package has; put it in a folder with the"
        " config.json that names its genes."
    )


class _OtherPanelError(TcgnError):
    """The file's classifier has another number of outputs."""


def _read_parameters(architecture: str, file: Path, **kwargs: Any) -> TCGN:
    import pickle

    from safetensors import SafetensorError
    from timm.models import load_state_dict

    if not file.is_file():
        raise WeightsError(f"{file} does not exist.")
    unreadable = (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError, LookupError, OSError)
    try:
        state_dict = load_state_dict(str(file), weights_only=True)
    except (*unreadable, AttributeError) as err:  # timm asks whatever it unpacked for its items
        reason = str(err).splitlines()[0] if str(err) else repr(err)
        raise WeightsError(f"{file} cannot be read as parameters ({reason}).") from err
    if not all(isinstance(value, torch.Tensor) for value in state_dict.values()):
        raise WeightsError(f"{file} does not hold a dictionary of tensors.")
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


def _info(name: str, genes: tuple[str, ...], units: str, sha256: str, held_out: dict[str, Any]) -> ModelInfo:
    pcc, reliable = held_out.get("pcc"), held_out.get("reliable")
    return ModelInfo(
        name=name,
        genes=genes,
        units=units,
        sha256=sha256,
        pcc=None if pcc is None else dict(zip(genes, pcc, strict=True)),
        reliable=None if reliable is None else frozenset(reliable),
    )
