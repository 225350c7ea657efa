"""What a finished run leaves: the model directory, its card, metrics, tables and figures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tcgn_hub.data.crops import SpotCrops
from tcgn_hub.data.sections import Section, panel_depth
from tcgn_hub.evaluation.measuring import parts_of, seen_in
from tcgn_hub.files import write_text
from tcgn_hub.images.transforms import INPUT_PX
from tcgn_hub.prediction.ood import describe
from tcgn_hub.prediction.predictor import Predictor
from tcgn_hub.training.loop import fits_float16
from tcgn_hub.training.trainer import Trainer
from tcgn_hub.units import UNITS
from tcgn_hub.weights.info import WeightsInfo
from tcgn_hub.weights.typical import describe_predictions
from tcgn_hub.writing.evaluations import draw, write_csv, write_evaluation

if TYPE_CHECKING:
    from torch import nn

    from tcgn_hub.result import Evaluation, Measured


def write_results(
    trainer: Trainer,
    model: nn.Module,
    out: Path,
    *,
    evaluation: Evaluation | None,
    measured: Sequence[Measured],
    blocks: Mapping[str, Any],
    lineage: Mapping[str, Any],
    fingerprint: Mapping[str, Any],
    metadata: Mapping[str, Any],
    probe: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Write the files of a finished run; ``metrics.json`` comes last and says that all others are there.

    ``trainer``: the run; ``model``: what it kept; ``out``: the folder; ``evaluation``: results on what was held out,
    None if nothing was; ``measured``: what they were computed from; ``blocks``: what `described` gives;
    ``lineage``: ``parents`` and ``seen`` of the weights; ``fingerprint``: what the run follows from; ``metadata``: what
    else is to be stated of the weights; ``probe``: how a head in closed form was chosen, None if there is none.
    """
    from tcgn_hub.weights.card import model_card
    from tcgn_hub.weights.model_dir import save_model_dir

    sections, split, history = trainer.sections, trainer.split, trainer.state.history
    info = WeightsInfo.from_json(
        {
            "held_out": {} if evaluation is None else held_out_of(evaluation),
            "license": "not stated",
            "origin": "fine-tuned with tcgn_hub",
            **metadata,
            "crop": {**(metadata.get("crop") or {}), **_crop(trainer)},
            "training_data": {
                "name": "own sections",
                **(metadata.get("training_data") or {}),
                "sections": list(split.train),
                "patients": sorted({sections[name].patient for name in split.train}),
                "held_out": list(split.test),
            },
            **blocks,
            **lineage,
        },
        name=out.resolve().name,
        genes=tuple(trainer.panel),
        units=UNITS,
        architecture=model.pretrained_cfg["architecture"],  # type: ignore[index]
    )
    save_model_dir(model, out, info, half=fits_float16(model))
    write_text(out / "README.md", model_card(info.name, info))
    write_text(out / "splits.json", split.to_json())
    if history:
        write_csv(out / "history.csv", history)
    draw(out / "figures", history=history)
    metrics = {
        **fingerprint,
        "spots": {name: len(section.spots) for name, section in sections.items()},
        "left_out": {name: dict(section.left_out) for name, section in sections.items()},
        "epochs": len(history),
        **({} if probe is None else {"probe": dict(probe)}),
        "held_out": None,
    }
    if evaluation is None:
        write_text(out / "metrics.json", json.dumps(metrics, indent=2) + "\n")
    else:
        write_evaluation(evaluation, measured, out, metadata=metrics)
    return json.loads((out / "metrics.json").read_text(encoding="utf-8"))


def described(
    predictor: Predictor, sections: Sequence[Section], crops: Mapping[str, SpotCrops]
) -> dict[str, dict[str, Any] | None]:
    """``ood`` and ``typical`` of `tcgn_hub.weights.info.WeightsInfo`: what weights say of their training sections.

    ``predictor``: the weights; ``sections``: what they were trained on; ``crops``: of each section by name.
    """
    seen = [seen_in(predictor, crops[section.name]) for section in sections]
    tissue = describe(
        [each.features for each in seen],
        [each.pictures for each in seen],
        places=[section.xy for section in sections],
    )
    depths = np.concatenate([panel_depth(section, predictor.info.genes) for section in sections])
    spots = [section for section in sections if not section.bulk]
    # the tiles of a bulk slide have no depth, so that their part does not count
    parts, is_spot = (
        np.zeros(len(depths), int),
        np.repeat([not s.bulk for s in sections], [len(s.spots) for s in sections]),
    )
    if spots:
        parts[is_spot] = parts_of(spots)
    typical = describe_predictions(
        np.concatenate([each.values for each in seen]),
        depths,
        features=np.concatenate([each.features for each in seen]),
        parts=parts,
    )
    return {
        "ood": None if tissue is None else tissue.to_json(),
        "typical": None if typical is None else typical.to_json(),
    }


def held_out_of(evaluation: Evaluation) -> dict[str, Any]:
    """Held-out metrics as ``config.json`` and the manifest state them; of other methods the two medians."""
    lists = {
        key: [None if row[key] is None else round(row[key], 4) for row in evaluation.per_gene]
        for key in ("pcc", "pcc_given_depth", "interval_radius")
    }
    significant = [row["gene"] for row in evaluation.per_gene if row["significant"]]
    known = {key: values for key, values in lists.items() if key == "pcc" or any(v is not None for v in values)}
    summary = {**evaluation.summary, "methods": _medians(evaluation.summary)}
    summary["sections"] = {
        name: {**section, "methods": _medians(section)} for name, section in summary["sections"].items()
    }
    return {**summary, **known, "significant": significant}


def _medians(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Of every method the medians that compare it with others."""
    return {
        label: {key: values[key] for key in ("median_pcc", "median_pcc_given_depth", "hvg50")}
        for label, values in summary["methods"].items()
    }


def _crop(trainer: Trainer) -> dict[str, Any]:
    """How patches were cut, as the manifest states it."""
    if trainer.patch_um is not None:
        um = trainer.patch_um
        return {"patch_um": um, "rule": f"a field of {um:g} um, resized to {INPUT_PX} px"}
    px = trainer.crop_px or 0
    sides = [px * section.mpp for section in trainer.sections.values() if section.mpp is not None]
    covers = {"patch_um": round(float(np.median(sides)), 1)} if sides else {}
    return {"px": px, **covers, "rule": f"{px} px of the image, resized to {INPUT_PX} px"}
