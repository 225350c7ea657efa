"""What is known of a model beside its parameters: genes, units, scale, and how well it does."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from tcgn_hub.data.scale import NOMINAL_FIELD_UM
from tcgn_hub.errors import WeightsError
from tcgn_hub.uncertainty.conformal import LEVEL
from tcgn_hub.uncertainty.familiarity import Familiarity

__all__ = ["ModelInfo", "model_info"]


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
        field_um: Side of the patches it was trained on, in micrometres; the paper's nominal 56 if it is not stated.
        nominal_field_um: The same by the nominal size of the pixels of their magnification, where it is stated; it is
            what an image of which only the magnification is known is cut by.
        training_data: What is stated of its training: ``sections``, ``patients``, ``source``, ...; empty if nothing.
        half_widths: Half of the width of each gene's prediction interval in the units of the outputs, NaN for genes
            that it is not known of; None if it was not measured. See `tcgn_hub.uncertainty.conformal`.
        level: Share of the measurements that these intervals are to hold.
        familiarity: Tells patches that are unlike the training tissue; None if that is not stated.
    """

    name: str
    genes: tuple[str, ...]
    units: str
    sha256: str
    pcc: dict[str, float] | None
    reliable: frozenset[str] | None
    field_um: float = NOMINAL_FIELD_UM
    nominal_field_um: float = NOMINAL_FIELD_UM
    training_data: dict[str, Any] = field(default_factory=dict)
    half_widths: dict[str, float] | None = None
    level: float = LEVEL
    familiarity: Familiarity | None = None


def model_info(name: str, genes: tuple[str, ...], units: str, sha256: str, facts: dict[str, Any]) -> ModelInfo:
    """What is known of a model from what is stated of its weights.

    Args:
        name: Tag, folder or file.
        genes: Symbols in the order of the outputs.
        units: Units of the outputs.
        sha256: Of the file of parameters.
        facts: ``held_out``, ``crop`` and ``training_data`` as in the manifest, each of which may be missing.

    Raises:
        WeightsError: What is stated is malformed.
    """
    held_out, crop, training_data = (facts.get(key) or {} for key in ("held_out", "crop", "training_data"))
    pcc, reliable = held_out.get("pcc"), held_out.get("reliable")
    widths, features = held_out.get("half_widths"), training_data.get("features")
    try:
        familiarity = Familiarity.from_json(features) if features else None
        half_widths = dict(zip(genes, map(_known, widths), strict=True)) if widths else None
        known_pcc = None if pcc is None else dict(zip(genes, pcc, strict=True))
    except (ValueError, TypeError) as err:
        raise WeightsError(f"What is stated of {name} is malformed ({err}).") from err
    return ModelInfo(
        name=name,
        genes=genes,
        units=units,
        sha256=sha256,
        pcc=known_pcc,
        reliable=None if reliable is None else frozenset(reliable),
        field_um=float(crop.get("trained_field_um") or crop.get("nominal_field_um") or NOMINAL_FIELD_UM),
        nominal_field_um=float(crop.get("nominal_field_um") or crop.get("trained_field_um") or NOMINAL_FIELD_UM),
        training_data={key: value for key, value in training_data.items() if key != "features"},
        half_widths=half_widths,
        level=float(held_out.get("interval_level") or LEVEL),
        familiarity=familiarity,
    )


def _known(value: float | None) -> float:
    """JSON has no word for NaN."""
    return math.nan if value is None else float(value)
