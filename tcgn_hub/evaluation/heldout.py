"""evaluate(): a model and its baselines on sections that were held out."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from tcgn_hub.data.checks import check_sections
from tcgn_hub.data.crops import SpotCrops, spot_crops
from tcgn_hub.data.readers import Data, as_sections
from tcgn_hub.data.sections import Section, expression_targets, panel_counts
from tcgn_hub.errors import SectionError
from tcgn_hub.evaluation.baselines import color_texture_features, mean_predict, ridge_predict
from tcgn_hub.evaluation.evaluate import summarise
from tcgn_hub.evaluation.splits import check_seen
from tcgn_hub.prediction.ood import TissueModel, describe
from tcgn_hub.prediction.picture import picture_features
from tcgn_hub.prediction.predictor import Predictor, load_weights
from tcgn_hub.progress import Progress
from tcgn_hub.result import Evaluation, Measured
from tcgn_hub.units import mean_in_linear
from tcgn_hub.writing.evaluations import write_evaluation

_logger = logging.getLogger(__name__)


def evaluate(
    data: Data,
    *,
    weights: str | Path | Predictor | None = None,
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
    """Measure weights on sections that neither they nor their parents have seen.

    The baselines are fitted on those sections of ``data`` that the weights have seen, and are not to be measured on;
    without any, the results stand alone.

    Args:
        data: Sections, or what `tcgn_hub.read_sections` takes.
        weights: As in `tcgn_hub.predict`, exported ones among them; or a `Predictor`, to which the last
            three options do not apply.
        test: Names of the sections or patients to measure on; all sections that the weights have not seen if None.
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
    predictor = (
        weights
        if isinstance(weights, Predictor)
        else load_weights(weights, device=device, precision=precision, backend=backend)
    )
    info = predictor.info
    sections = as_sections(data)
    was_seen = {s.name: any(map(s.seen().is_same, info.seen)) for s in sections}
    chosen = [s for s in sections if (not was_seen[s.name] if test is None else {s.name, s.patient}.intersection(test))]
    unknown = set(test or ()) - {name for section in sections for name in (section.name, section.patient)}
    if unknown or not chosen:
        what = f"There is no section or patient {', '.join(sorted(unknown))}" if unknown else "No section is left"
        raise SectionError(f"{what} to measure on; the sections are {', '.join(s.name for s in sections)}.")
    if not info.seen:
        _logger.warning("%s does not say what it has seen, so that a leak cannot be excluded.", info.name)
    allowed = check_seen(info.seen, chosen, by=by, allow=allow_seen)
    held_out = {section.name for section in chosen}
    train = [section for section in sections if was_seen[section.name] and section.name not in held_out]
    if not train:
        _logger.warning("No baselines: none of the sections that %s has seen is among the data.", info.name)

    checked, table = check_sections([*train, *chosen], info.genes)
    _logger.info("%s", table)
    size = {"crop_px": crop_px} if crop_px else {"patch_um": info.patch_um}
    measured = measure(
        predictor,
        train=checked[: len(train)],
        test=checked[len(train) :],
        panel=info.genes,
        crops={section.name: spot_crops(section, cache=cache, progress=progress, **size) for section in checked},
        tta=tta,
        progress=progress,
    )
    evaluation = summarise(measured, info.genes, allowed_seen=allowed)
    if out is not None:
        stated = {"weights": info.name, "sha256": info.sha256, "by": by, "tta": tta, "allowed_seen": allowed}
        write_evaluation(evaluation, measured, out, metadata=stated)
    return evaluation


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


def describe_tissue(
    predictor: Predictor, crops: Sequence[SpotCrops], places: Sequence[np.ndarray]
) -> TissueModel | None:
    """What the tissue of sections is like for a model; None for fewer than 40 spots.

    ``crops``: of each section; ``places``: of its spots, shape (n, 2), see `tcgn_hub.prediction.ood.describe`.
    """
    seen = [tissue_numbers(predictor, each) for each in crops]
    return describe([features for features, _ in seen], [pictures for _, pictures in seen], places=places)


def tissue_numbers(predictor: Predictor, crops: SpotCrops, *, batch_size: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """What tissue is described by: features of the centres of crops, shape (n, 1280), and numbers of their pictures."""
    parts = []
    for pixels in _batches(crops, batch_size):
        x = predictor.backend.prepare(pixels)
        parts.append((predictor.backend.forward(x)[1], picture_features(x)))
    features, pictures = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return features, pictures


def _batches(crops: SpotCrops, batch_size: int) -> Iterator[np.ndarray]:
    return (patches.transpose(0, 2, 3, 1) for patches in crops.patches(batch_size))


def measure(
    predictor: Predictor,
    *,
    train: Sequence[Section],
    test: Sequence[Section],
    panel: Sequence[str],
    crops: Mapping[str, SpotCrops],
    tta: int = 1,
    progress: bool = False,
) -> list[Measured]:
    """Predictions of a model for held-out sections, beside those of baselines fitted on the training sections, if any.

    Sections with one bulk measurement become one, whose spots are the slides: means of their tiles in linear space.
    """
    targets = {s.name: expression_targets(s, panel) for s in (*train, *test)}
    features = {s.name: _features(s, crops[s.name]) for s in (*train, *test)} if train else {}
    x = np.concatenate([features[s.name] for s in train]) if train else np.empty((0, 0))
    y = np.concatenate([targets[s.name] for s in train]) if train else np.empty((0, len(panel)))

    def one(section: Section) -> Measured:
        predicted = predict_crops(predictor, crops[section.name], tta=tta, bar=bar)
        baselines = {}
        if train:
            own = features[section.name]
            baselines = {"ridge": ridge_predict(x, y, own), "mean": mean_predict(y, len(own))}
        return Measured(
            name=section.name,
            patient=section.patient,
            xy=section.xy,
            targets=targets[section.name],
            predicted=mean_in_linear(predicted)[None] if section.bulk else predicted,
            baselines=baselines,
            counts=None if section.bulk else panel_counts(section, panel),
        )

    count = sum(len(crops[section.name].pixels) for section in test)
    with Progress(count, "spot", name="measuring", shown=progress) as bar:
        spots = [one(section) for section in test if not section.bulk]
        slides = [one(section) for section in test if section.bulk]
    return spots + ([_together(slides)] if slides else [])


def _features(section: Section, crops: SpotCrops) -> np.ndarray:
    features = np.concatenate([color_texture_features(patches) for patches in crops.patches()])
    return features.mean(axis=0, keepdims=True) if section.bulk else features


def _together(slides: Sequence[Measured]) -> Measured:
    """Slides with one measurement each, as the spots of one section."""
    return Measured(
        name="bulk",
        patient=", ".join(dict.fromkeys(slide.patient for slide in slides)),
        xy=np.full((len(slides), 2), np.nan),
        targets=np.concatenate([slide.targets for slide in slides]),
        predicted=np.concatenate([slide.predicted for slide in slides]),
        baselines={name: np.concatenate([slide.baselines[name] for slide in slides]) for name in slides[0].baselines},
        counts=None,
    )
