"""What a model and the baselines predict for sections held out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from tcgn_hub.correlation import column_means, pearson
from tcgn_hub.data.crops import SpotCrops
from tcgn_hub.data.sections import Section, expression_targets, panel_counts
from tcgn_hub.data.targets import pearson_residuals, training_targets
from tcgn_hub.evaluation.baselines import color_texture_features, depth_predict, mean_predict, ridge_predict
from tcgn_hub.prediction.picture import picture_features
from tcgn_hub.prediction.predictor import Predictor
from tcgn_hub.progress import Progress
from tcgn_hub.result import OURS, Measured
from tcgn_hub.units import depth, mean_in_linear

_COMPONENTS = 20  # of the targets that ridge regression on many features is fitted on, as by default in training


def predict_crops(
    predictor: Predictor, crops: SpotCrops, *, tta: int = 1, batch_size: int = 32, bar: Progress | None = None
) -> np.ndarray:
    """Predictions for the centres of crops, shape (n, genes); ``bar`` counts them."""
    return _said(predictor, crops, tta=tta, batch_size=batch_size, bar=bar)["values"]


def _said(
    predictor: Predictor, crops: SpotCrops, *, tta: int = 1, batch_size: int = 32, bar: Progress | None = None
) -> dict[str, np.ndarray]:
    """What `Predictor.run` gives for the centres of crops; ``bar`` counts them."""
    parts = []
    batches = ((len(x), x) for x in _batches(crops, batch_size))
    for number, said in predictor.stream(batches, tta=tta, count=len(crops.pixels), batch_size=batch_size):
        parts.append(said)
        if bar is not None:
            bar.update(number)
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def pooled_features(predictor: Predictor, crops: SpotCrops, *, batch_size: int = 32) -> np.ndarray:
    """Features of the centres of crops, shape (n, 1280)."""
    return np.concatenate([predictor.run(x, features=True)["features"] for x in _batches(crops, batch_size)])


class Seen(NamedTuple):
    """What a model says of the centres of n crops, and what it was given."""

    values: np.ndarray  # predictions, shape (n, genes)
    features: np.ndarray  # before the head, shape (n, 1280)
    pictures: np.ndarray  # see `tcgn_hub.prediction.picture.picture_features`, shape (n, 32)


def seen_in(predictor: Predictor, crops: SpotCrops, *, batch_size: int = 32) -> Seen:
    """Predictions, features and pictures of the centres of crops."""
    parts = []
    for pixels in _batches(crops, batch_size):
        said = predictor.run(pixels, features=True)
        parts.append((said["values"], said["features"], picture_features(predictor.backend.prepare(pixels))))
    return Seen(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def _batches(crops: SpotCrops, batch_size: int) -> Iterator[np.ndarray]:
    return (patches.transpose(0, 2, 3, 1) for patches in crops.patches(batch_size))


def measure(
    predictor: Predictor | None,
    *,
    train: Sequence[Section],
    test: Sequence[Section],
    panel: Sequence[str],
    crops: Mapping[str, SpotCrops],
    features: Mapping[str, Mapping[str, np.ndarray]] = MappingProxyType({}),
    tta: int = 1,
    progress: bool = False,
) -> list[Measured]:
    """Predictions of a model, if there is one, for held-out sections, beside those of baselines.

    Baselines are fitted on the training sections, if there are any.

    ``features``: features of the spots by section, under the label of the baseline that is fitted on them. Its penalty
    is chosen on the training sections, and noise is removed from its targets as from those of a network. Sections with
    one bulk measurement become one, whose spots are the slides: means of their tiles in linear space.

    ``train_pcc`` of a method is the mean over training sections of each gene's PCC there. Every method has seen these,
    so that it chooses a method's own genes, and says nothing of its skill.
    """
    sections = [*train, *test]
    targets = {s.name: expression_targets(s, panel) for s in sections}
    counts = {s.name: None if s.bulk else panel_counts(s, panel) for s in sections}
    baselines = _baselines(train, sections, targets, counts, crops, features) if train else {}

    methods, depths = dict(baselines), dict[str, np.ndarray | None]()
    if predictor is not None:
        count = sum(len(crops[section.name].pixels) for section in sections)
        with Progress(count, "spot", name="measuring", shown=progress) as bar:
            # to choose genes on the training sections, patches as they are will do
            times = {**dict.fromkeys([s.name for s in train], 1), **dict.fromkeys([s.name for s in test], tta)}
            said = {s.name: _said(predictor, crops[s.name], tta=times[s.name], bar=bar) for s in sections}
        methods[OURS] = {s.name: _measurable(s, said[s.name]["values"]) for s in sections}
        depths = {s.name: None if s.bulk else said[s.name].get("predicted_depth") for s in sections}
    train_pcc = {label: _mean_pcc(train, values, targets) for label, values in methods.items() if train}
    train_variance = _variance([counts[section.name] for section in train])
    typical = None if predictor is None else predictor.info.predicted_in_training
    slope = None if typical is None or typical.depth is None else typical.depth.slope
    spots = [
        Measured(
            name=section.name,
            patient=section.patient,
            xy=section.xy,
            targets=targets[section.name],
            predicted=None if predictor is None else methods[OURS][section.name],
            baselines={label: values[section.name] for label, values in baselines.items()},
            counts=counts[section.name],
            train_pcc=train_pcc,
            train_variance=train_variance,
            predicted_depth=depths.get(section.name),
            depth_slope=None if depths.get(section.name) is None else slope,
        )
        for section in test
    ]
    slides = [of for of, section in zip(spots, test, strict=True) if section.bulk]
    spots = [of for of, section in zip(spots, test, strict=True) if not section.bulk]
    return spots + ([_together(slides)] if slides else [])


def _measurable(section: Section, values: np.ndarray) -> np.ndarray:
    """Predictions for what was measured: the spots, or of a bulk slide the mean of its tiles in linear space."""
    return mean_in_linear(values)[None] if section.bulk else values


def _baselines(
    train: Sequence[Section],
    sections: Sequence[Section],
    targets: Mapping[str, np.ndarray],
    counts: Mapping[str, np.ndarray | None],
    crops: Mapping[str, SpotCrops],
    features: Mapping[str, Mapping[str, np.ndarray]],
) -> dict[str, dict[str, np.ndarray]]:
    """What each baseline, fitted on ``train``, predicts for each section, by its label and the section's name."""
    y = np.concatenate([targets[s.name] for s in train])
    places = np.cumsum([len(targets[s.name]) for s in sections])[:-1]

    def by_section(values: np.ndarray) -> dict[str, np.ndarray]:
        return dict(zip([s.name for s in sections], np.split(values, places), strict=True))

    def ridge(of: Mapping[str, np.ndarray], y: np.ndarray, parts: np.ndarray | None = None) -> dict[str, np.ndarray]:
        x = [of[s.name] for s in sections]
        return by_section(ridge_predict(np.concatenate(x[: len(train)]), y, np.concatenate(x), parts=parts))

    known = {s.name: _depth(counts[s.name], len(targets[s.name])) for s in sections}
    depths = np.concatenate([known[s.name] for s in train])
    baselines = {"mean": by_section(mean_predict(y, sum(len(t) for t in targets.values())))}
    if not np.isnan(np.concatenate(list(known.values()))).all():
        baselines["depth"] = by_section(depth_predict(depths, y, np.concatenate([known[s.name] for s in sections])))
    baselines["ridge"] = ridge({s.name: _of_section(s, _colours(crops[s.name])) for s in sections}, y)
    without_noise = np.concatenate(training_targets([targets[s.name] for s in train], _COMPONENTS).targets)
    for label, of in features.items():
        own = {s.name: _of_section(s, of[s.name]) for s in sections}
        baselines[label] = ridge(own, without_noise, parts_of(train))
    return baselines


def _depth(counts: np.ndarray | None, spots: int) -> np.ndarray:
    return np.full(spots, np.nan) if counts is None else depth(counts)


def parts_of(train: Sequence[Section]) -> np.ndarray:
    """What is left out together to choose a penalty: a section, or strips of the only one; bulk slides in fives."""
    if len(train) == 1 and not train[0].bulk:
        xy = np.nan_to_num(train[0].xy)
        along = np.argsort(np.argsort(xy[:, np.argmax(np.ptp(xy, axis=0))]))
        return 5 * along // len(along)
    slides = [section.name for section in train if section.bulk]
    return np.concatenate(
        [[len(train) + slides.index(s.name) // 5] if s.bulk else np.full(len(s.spots), i) for i, s in enumerate(train)]
    )


def _mean_pcc(
    train: Sequence[Section], values: Mapping[str, np.ndarray], targets: Mapping[str, np.ndarray]
) -> np.ndarray:
    """Mean over training sections of the PCC of each gene there, NaN where none has it, shape (genes,)."""
    return column_means(np.stack([pearson(values[s.name], targets[s.name]) for s in train]), np.nan)


def _variance(counts: Sequence[np.ndarray | None]) -> np.ndarray | None:
    """Mean over sections of the variance of each gene's Pearson residuals, shape (genes,); None without counts."""
    known = [pearson_residuals(values).var(axis=0) for values in counts if values is not None]
    return column_means(np.stack(known), np.nan) if known else None


def _colours(crops: SpotCrops) -> np.ndarray:
    return np.concatenate([color_texture_features(patches) for patches in crops.patches()])


def _of_section(section: Section, features: np.ndarray) -> np.ndarray:
    """Features of what was measured: of the spots, or of a bulk slide the mean over its tiles."""
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
        train_pcc=slides[0].train_pcc,
        train_variance=slides[0].train_variance,
    )
