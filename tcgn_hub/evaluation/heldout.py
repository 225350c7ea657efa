"""evaluate(): a model and its baselines on sections that were held out."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tcgn_hub.data.checks import check_sections
from tcgn_hub.data.crops import SpotCrops, spot_crops
from tcgn_hub.data.readers import Data, as_sections
from tcgn_hub.data.sections import Section, expression_targets, panel_counts
from tcgn_hub.errors import SectionError
from tcgn_hub.evaluation.baselines import color_texture_features, mean_predict, ridge_predict
from tcgn_hub.evaluation.evaluate import summarise
from tcgn_hub.evaluation.referee import read_given, stated, with_predictions
from tcgn_hub.evaluation.splits import check_seen
from tcgn_hub.panels import load_panel
from tcgn_hub.prediction.predictor import Predictor, load_weights
from tcgn_hub.progress import Progress
from tcgn_hub.result import Evaluation, Measured
from tcgn_hub.text import some
from tcgn_hub.units import mean_in_linear
from tcgn_hub.weights.info import WeightsInfo
from tcgn_hub.weights.manifest import load_manifest
from tcgn_hub.writing.evaluations import write_evaluation

_logger = logging.getLogger(__name__)


def evaluate(
    data: Data,
    *,
    weights: str | Path | Predictor | None = None,
    predictions: Mapping[str, Any] | None = None,
    predictions_scale: str | Mapping[str, str] = "log",
    genes: str | Path | Sequence[str] | None = None,
    test: Sequence[str] | None = None,
    by: str = "patient",
    allow_seen: Collection[str] = (),
    out: str | Path | None = None,
    tta: int = 1,
    crop_px: int | None = None,
    cache: str | Path | None = None,
    device: str = "auto",
    precision: str = "auto",
    backend: str | None = None,
    progress: bool = False,
) -> Evaluation:
    """Measure weights, and predictions of other methods, on sections that the weights and their parents have not seen.

    The baselines are fitted on those sections of ``data`` that the weights have seen, and are not to be measured on;
    without any, the results stand alone.

    Args:
        data: Sections, or what `tcgn_hub.read_sections` takes.
        weights: As in `tcgn_hub.predict`, exported ones among them; or a `Predictor`, to which the last
            three options do not apply. If None, the default weights; where predictions are given and these weights have
            seen the sections or their patients, or ``genes`` are given, the predictions alone.
        predictions: Of other methods, by what to call them: a file (.h5ad, .csv, .tsv, .parquet), an AnnData, a
            DataFrame, or arrays by section, shape (spots, genes). See `tcgn_hub.data.predictions.read_predictions` for
            how they are matched with spots and genes, and `tcgn_hub.evaluation.referee.with_predictions` for what is
            compared. The first of them is what is described in detail where no weights are measured.
        predictions_scale: 'log' for logarithmic or standardised values, whose units are free, or 'linear' for such as
            counts; for all of them, or by what they are called.
        genes: Panel to score predictions on, as in `finetune`; that of the weights, as far as it was measured, if None.
        test: Names of the sections or patients to measure on; all sections that the weights have not seen if None, and
            all without weights.
        by: 'patient' refuses sections of patients that the weights have seen; 'section' takes them.
        allow_seen: Names of sections to measure on although they or their patients were seen; the table says so.
        out: Folder to write ``metrics.json``, ``per_gene.csv``, ``held_out.npz`` and ``figures/`` to.
        tta: Over how many rotations and reflections of a patch to average its prediction, 1 to 8.
        crop_px: Side of a patch in pixels of the image, instead of in micrometres.
        cache: Folder to keep crops in.
        device: As in `tcgn_hub.load`, and so are the others.
        precision: Precision of the products.
        backend: What computes.
        progress: Show progress bars on stderr where that is a terminal, and else log a line a minute.

    Raises:
        SectionError: Data are missing or malformed, no section is left to measure on, or one was seen, see
            `tcgn_hub.evaluation.splits.check_seen`.
        WeightsError: The weights cannot be had.
        OutputError: The results cannot be written.
    """
    sections = as_sections(data)
    unknown = set(test or ()) - {name for section in sections for name in (section.name, section.patient)}
    named = [s for s in sections if test is None or {s.name, s.patient}.intersection(test)]
    given = dict(predictions or {})
    if genes is not None and (weights is not None or not given):
        raise SectionError("Genes are given for predictions that stand alone; weights are measured on those they have.")
    predictor, info = None, _default()
    if weights is not None or not (given and (genes is not None or _are_left_out(info, named, by, allow_seen))):
        predictor = (
            weights
            if isinstance(weights, Predictor)
            else load_weights(weights, device=device, precision=precision, backend=backend)
        )
        info = predictor.info
    was_seen = {s.name: predictor is not None and any(map(s.seen().is_same, info.seen)) for s in sections}
    chosen = [s for s in named if test is not None or not was_seen[s.name]]
    if unknown or not chosen:
        what = f"There is no section or patient {', '.join(sorted(unknown))}" if unknown else "No section is left"
        raise SectionError(f"{what} to measure on; the sections are {', '.join(s.name for s in sections)}.")
    allowed: list[str] = []
    if predictor is not None:
        if not info.seen:
            _logger.warning("%s does not say what it has seen, so that a leak cannot be excluded.", info.name)
        allowed = check_seen(info.seen, chosen, by=by, allow=allow_seen)
    held_out = {section.name for section in chosen}
    train = [section for section in sections if was_seen[section.name] and section.name not in held_out]
    if not train:
        _logger.warning(
            "No baselines: %s.",
            "there are no sections to fit them on"
            if predictor is None
            else f"none of the sections that {info.name} has seen is among the data",
        )
    panel = info.genes if predictor is not None else _panel(info.genes if genes is None else load_panel(genes), chosen)

    needs_images = predictor is not None or bool(train)
    checked, table = check_sections([*train, *chosen], panel, images=needs_images)
    _logger.info("%s", table)
    tested = checked[len(train) :]
    # they are refused before hours are spent on ours
    rows = {section.name: section.spots for section in sections}
    others = read_given(given, predictions_scale, tested, panel, rows=rows)
    size: dict[str, Any] = {"crop_px": crop_px} if crop_px else {"patch_um": info.patch_um}
    crops = {s.name: spot_crops(s, cache=cache, progress=progress, **size) for s in (checked if needs_images else ())}
    measured = measure(
        predictor, train=checked[: len(train)], test=tested, panel=panel, crops=crops, tta=tta, progress=progress
    )
    notes: list[str] = []
    if others:
        measured, notes = with_predictions(measured, others)
    evaluation = summarise(measured, panel, allowed_seen=allowed)
    if others:
        evaluation.summary.update(notes=notes, predictions=stated(others))
    if out is not None:
        known: dict[str, Any] = {"weights": info.name, "sha256": info.sha256} if predictor is not None else {}
        known |= {"by": by, "tta": tta, "allowed_seen": allowed}
        write_evaluation(evaluation, measured, out, metadata=known)
    return evaluation


def _default() -> WeightsInfo:
    """What the manifest says of the default weights, whether or not their file is there."""
    return next(iter(load_manifest().values())).info


def _are_left_out(info: WeightsInfo, sections: Sequence[Section], by: str, allow_seen: Collection[str]) -> bool:
    """Whether predictions of others stand without the default weights, which is said."""
    measured = {gene for section in sections for gene in section.genes}
    absent = sum(gene not in measured for gene in info.genes)
    names = [section.name for section in sections]
    seen = [name for name in check_seen(info.seen, sections, by=by, allow=names) if name not in allow_seen]
    if not seen and not absent:
        return False
    reason = f"have seen section {some(seen)}, or the patient" if seen else f"predict {absent} genes not measured here"
    _logger.warning("The predictions stand without %s, as these weights %s.", info.name, reason)
    return True


def _panel(genes: Sequence[str], sections: Sequence[Section]) -> list[str]:
    """The genes of a panel that any of the sections has measured."""
    measured = {gene for section in sections for gene in section.genes}
    return [gene for gene in genes if gene in measured] or list(genes)


def predict_crops(
    predictor: Predictor, crops: SpotCrops, *, tta: int = 1, batch_size: int = 32, bar: Progress | None = None
) -> np.ndarray:
    """Predictions for the centres of crops, shape (n, genes); ``bar`` counts them."""
    predicted = []
    for x in _batches(crops, batch_size):
        predicted.append(predictor.run(x, tta=tta)["values"])
        if bar is not None:
            bar.update(len(x))
    return np.concatenate(predicted)


def pooled_features(predictor: Predictor, crops: SpotCrops, *, batch_size: int = 32) -> np.ndarray:
    """Features of the centres of crops, shape (n, 1280)."""
    return np.concatenate([predictor.run(x, features=True)["features"] for x in _batches(crops, batch_size)])


def _batches(crops: SpotCrops, batch_size: int) -> Iterator[np.ndarray]:
    return (patches.transpose(0, 2, 3, 1) for patches in crops.patches(batch_size))


def measure(
    predictor: Predictor | None,
    *,
    train: Sequence[Section],
    test: Sequence[Section],
    panel: Sequence[str],
    crops: Mapping[str, SpotCrops],
    tta: int = 1,
    progress: bool = False,
) -> list[Measured]:
    """Predictions of a model for held-out sections, if there is one, beside those of baselines fitted on the training
    sections, if any.

    Sections with one bulk measurement become one, whose spots are the slides: means of their tiles in linear space.
    """
    targets = {s.name: expression_targets(s, panel) for s in (*train, *test)}
    features = {s.name: _features(s, crops[s.name]) for s in (*train, *test)} if train else {}
    x = np.concatenate([features[s.name] for s in train]) if train else np.empty((0, 0))
    y = np.concatenate([targets[s.name] for s in train]) if train else np.empty((0, len(panel)))

    def one(section: Section) -> Measured:
        predicted = None if predictor is None else predict_crops(predictor, crops[section.name], tta=tta, bar=bar)
        baselines = {}
        if train:
            own = features[section.name]
            baselines = {"ridge": ridge_predict(x, y, own), "mean": mean_predict(y, len(own))}
        return Measured(
            name=section.name,
            patient=section.patient,
            xy=section.xy,
            targets=targets[section.name],
            predicted=mean_in_linear(predicted)[None] if section.bulk and predicted is not None else predicted,
            baselines=baselines,
            counts=None if section.bulk else panel_counts(section, panel),
        )

    count = 0 if predictor is None else sum(len(crops[section.name].pixels) for section in test)
    with Progress(count, "spot", name="measuring", shown=progress) as bar:
        spots = [one(section) for section in test if not section.bulk]
        slides = [one(section) for section in test if section.bulk]
    return spots + ([_together(slides)] if slides else [])


def _features(section: Section, crops: SpotCrops) -> np.ndarray:
    features = np.concatenate([color_texture_features(patches) for patches in crops.patches()])
    return features.mean(axis=0, keepdims=True) if section.bulk else features


def _together(slides: Sequence[Measured]) -> Measured:
    """Slides with one measurement each, as the spots of one section."""
    predicted = [slide.predicted for slide in slides if slide.predicted is not None]
    return Measured(
        name="bulk",
        patient=", ".join(dict.fromkeys(slide.patient for slide in slides)),
        xy=np.full((len(slides), 2), np.nan),
        targets=np.concatenate([slide.targets for slide in slides]),
        predicted=np.concatenate(predicted) if predicted else None,
        baselines={name: np.concatenate([slide.baselines[name] for slide in slides]) for name in slides[0].baselines},
        counts=None,
    )
