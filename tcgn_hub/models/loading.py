"""Where architecture and weights meet: loading by tag, folder or file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from tcgn_hub.errors import CheckpointError, TcgnError, WeightsError
from tcgn_hub.models.tcgn import TCGN
from tcgn_hub.panels import PANELS, load_panel
from tcgn_hub.units import UNITS
from tcgn_hub.weights.convert import read_parameters
from tcgn_hub.weights.hub import Resolved, hub_folder, resolve
from tcgn_hub.weights.info import WeightsInfo
from tcgn_hub.weights.model_dir import info_of


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
    if model_name.startswith("hf-hub:"):
        model_name = f"local-dir:{hub_folder(model_name, cache_dir)}"
    return timm.create_model(model_name, pretrained=pretrained, cache_dir=cache_dir, **kwargs)


class _NoInitialValues(TorchFunctionMode):
    """While this lasts parameters of new modules keep what is in memory, in this thread: all are read from a file."""

    _skipped = frozenset(
        {
            *(nn.init.kaiming_uniform_, nn.init.uniform_, nn.init.normal_, torch.Tensor.normal_),
            # those that timm's trunc_normal_ calls
            *(torch.Tensor.uniform_, torch.Tensor.erfinv_, torch.Tensor.mul_, torch.Tensor.add_, torch.Tensor.clamp_),
        }
    )

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in self._skipped:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def load_model(
    weights: str | Path | Resolved | None = None,
    *,
    device: str | None = None,
    cache_dir: str | Path | None = None,
    backbone: bool = False,
) -> tuple[TCGN, WeightsInfo]:
    """A model in eval mode with its genes, units and held-out significance; with ``backbone`` also one without genes.

    ``weights`` are as `tcgn_hub.weights.hub.resolve` takes them, or what it gave. A file of parameters lies in a model
    directory, or is a published checkpoint of a panel of this package.
    """
    found = weights if isinstance(weights, Resolved) else resolve(weights, cache_dir=cache_dir)
    info = info_of(found)
    if info is not None and (info.scope == "trunk" or (info.scope == "backbone" and not backbone)):
        raise WeightsError(f"{found.name} predicts no genes; it is a start for fine-tuning.")
    if found.entry is not None and info is not None:
        with _NoInitialValues():
            model: Any = timm.create_model(found.name, pretrained=True, cache_dir=cache_dir)
    elif info is not None:
        names = {"label_names": info.genes}
        model = _read(info.architecture, found.path, num_classes=len(info.genes), pretrained_cfg_overlay=names)
    else:
        model, info = _load_published(found)
    return model.eval().to(device or "cpu"), info


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
        return model, WeightsInfo(name=str(resolved.path), genes=genes, units=UNITS, sha256=resolved.sha256)
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
        with _NoInitialValues():
            model: Any = timm.create_model(architecture, pretrained=True, pretrained_cfg_overlay=overlay, **kwargs)
    except CheckpointError as err:
        raise CheckpointError(f"{file}: {err}") from err
    # timm keeps the overlay, and with it a second copy of all parameters
    model.pretrained_cfg.pop("state_dict", None)
    return model
