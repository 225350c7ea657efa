"""evaluate(): a model and its baselines on sections that were held out."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from tcgn_hub.correlation import column_means, pearson
from tcgn_hub.data.checks import check_sections
from tcgn_hub.data.crops import SpotCrops, spot_crops
from tcgn_hub.data.readers import Data, as_sections
from tcgn_hub.data.sections import Section, expression_targets, panel_counts
from tcgn_hub.data.targets import pearson_residuals, training_targets
from tcgn_hub.errors import SectionError
from tcgn_hub.evaluation.baselines import color_texture_features, depth_predict, mean_predict, ridge_predict
from tcgn_hub.evaluation.encoders import encoder_features, load_encoder
from tcgn_hub.evaluation.evaluate import summarise
from tcgn_hub.evaluation.protocols import hest_probes, protocol_scores
from tcgn_hub.evaluation.splits import check_seen
from tcgn_hub.prediction.predictor import Predictor, load_weights
from tcgn_hub.progress import Progress
from tcgn_hub.result import OURS, Evaluation, Measured
from tcgn_hub.text import option
from tcgn_hub.units import depth, mean_in_linear
from tcgn_hub.writing.evaluations import write_evaluation

_logger = logging.getLogger(__name__)
_COMPONENTS = 20  # of the targets that ridge regression on many features is fitted on, as by default in training


def evaluate(
    data: Data,
    *,
    weights: str | Path | Predictor | None = None,
    test: Sequence[str] | None = None,
    train: Sequence[str] | None = None,
    by: str = "patient",
    allow_seen: Collection[str] = (),
    encoders: Sequence[str] = (),
    encoder_um: Sequence[float] | None = None,
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
    without any, the results stand alone. They are the mean of each gene, its regression on the depth of the very spot
    that is predicted, and ridge regression on colour and texture and on the features of frozen networks.

    Args:
        data: Sections, or what `tcgn_hub.read_sections` takes.
        weights: As in `tcgn_hub.predict`, exported ones among them; or a `Predictor`, to which the last
            three options do not apply.
        test: Names of the sections or patients to measure on; all sections that the weights have not seen if None.
        train: Names of the sections or patients to fit the baselines on, if not on those that the weights have seen.
        by: 'patient' refuses sections of patients that the weights have seen; 'section' takes them.
        allow_seen: Names of sections to measure on although they or their patients were seen; the table says so.
        encoders: Frozen networks, each a baseline: a model of timm that has trained parameters, 'hf-hub:ORG/NAME', or
            'local-dir:DIR'.
        encoder_um: Sides of the patches that they see, in micrometres, whose features stand side by side; if None, the
            patch that the weights see.
        out: Folder to write ``metrics.json``, ``per_gene.csv``, ``held_out.npz`` and ``figures/`` to.
        tta: Over how many rotations and reflections of a patch to average its prediction, 1 to 8.
        crop_px: Side of a patch in pixels of the image, instead of in micrometres.
        cache: Folder to keep crops and features of networks in.
        device: As in `tcgn_hub.load`, and so are the others.
        precision: Precision of the products.
        backend: What computes.
        progress: Show progress bars on stderr where that is a terminal, and else log a line a minute.

    Raises:
        SectionError: Data are missing or malformed, no section is left to measure on, or one was seen, see
            `tcgn_hub.evaluation.splits.check_seen`.
        WeightsError: The weights, or those of a frozen network, cannot be had.
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
    chosen = [section for section in sections if _is_chosen(section, test, train, was_seen)]
    unknown = set(test or ()) - {name for section in sections for name in (section.name, section.patient)}
    if unknown or not chosen:
        what = f"There is no section or patient {', '.join(sorted(unknown))}" if unknown else "No section is left"
        raise SectionError(f"{what} to measure on; the sections are {', '.join(s.name for s in sections)}.")
    if not info.seen:
        _logger.warning("%s does not say what it has seen, so that a leak cannot be excluded.", info.name)
    allowed = check_seen(info.seen, chosen, by=by, allow=allow_seen)
    fitted = _to_fit(sections, chosen, train, was_seen)
    if not fitted:
        _logger.warning("No baselines: none of the sections that %s has seen is among the data.", info.name)
    loaded = {label: load_encoder(name, device=device) for label, name in _labels(encoders).items() if fitted}

    checked, table = check_sections([*fitted, *chosen], info.genes)
    _logger.info("%s", table)
    size: dict[str, Any] = {"crop_px": crop_px} if crop_px else {"patch_um": info.patch_um}
    fields: dict[str, Any] = size if crop_px and not encoder_um else {"patch_um": encoder_um or [info.patch_um]}
    sides: dict[str, Any] = {"train": checked[: len(fitted)], "test": checked[len(fitted) :], "panel": info.genes}
    crops = {section.name: spot_crops(section, cache=cache, progress=progress, **size) for section in checked}
    features = {
        label: {
            section.name: encoder_features(encoder, section, cache=cache, progress=progress, **fields)
            for section in checked
        }
        for label, encoder in loaded.items()
    }
    measured = measure(predictor, **sides, crops=crops, features=features, tta=tta, progress=progress)
    if features:
        features[OURS] = {name: pooled_features(predictor, own) for name, own in crops.items()}
    genes, probes = hest_probes(**sides, features=features)
    evaluation = summarise(measured, info.genes, allowed_seen=allowed)
    evaluation.summary["protocols"] = protocol_scores(measured, hest=genes, probes=probes)
    if out is not None:
        stated = {"weights": info.name, "sha256": info.sha256, "by": by, "tta": tta, "allowed_seen": allowed}
        stated |= {
            "baselines_fitted_on": [s.name for s in fitted],
            "encoders": list(encoders),
            "encoder_um": encoder_um,
        }
        write_evaluation(evaluation, measured, out, metadata=stated)
    return evaluation


def _is_chosen(
    section: Section, test: Sequence[str] | None, train: Sequence[str] | None, seen: Mapping[str, bool]
) -> bool:
    """Whether to measure on a section: it is named, or nothing has seen it or is to be fitted on it."""
    names = {section.name, section.patient}
    return not (seen[section.name] or names.intersection(train or ())) if test is None else bool(names & set(test))


def _labels(encoders: Sequence[str]) -> dict[str, str]:
    """Names of frozen networks by the label of their baseline, without folders where that leaves them apart."""
    short = [name.removeprefix("hf-hub:") for name in encoders]
    short = [Path(name).name if name.startswith("local-dir:") else name for name in short]
    apart = len(set(short)) == len(set(encoders))
    return {f"ridge {label}": name for label, name in zip(short if apart else encoders, encoders, strict=True)}


def _to_fit(
    sections: Sequence[Section], chosen: Sequence[Section], train: Sequence[str] | None, seen: Mapping[str, bool]
) -> list[Section]:
    """The sections that baselines are fitted on: those named, or those that were seen; none that is measured on."""
    held_out = {section.name for section in chosen}
    if train is None:
        return [section for section in sections if seen[section.name] and section.name not in held_out]
    known = {name for section in sections for name in (section.name, section.patient)}
    fitted = [section for section in sections if {section.name, section.patient}.intersection(train)]
    both = [section.name for section in fitted if section.name in held_out]
    if unknown := sorted(set(train) - known):
        raise SectionError(
            f"There is no section or patient {', '.join(unknown)} to fit baselines on; the sections are"
            f" {', '.join(section.name for section in sections)}."
        )
    if both:
        raise SectionError(
            f"Section {', '.join(both)} is both to fit baselines on and to measure on; name it once, in"
            f" {option('train')} or in {option('test')}."
        )
    return fitted


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
    predictor: Predictor,
    *,
    train: Sequence[Section],
    test: Sequence[Section],
    panel: Sequence[str],
    crops: Mapping[str, SpotCrops],
    features: Mapping[str, Mapping[str, np.ndarray]] = MappingProxyType({}),
    tta: int = 1,
    progress: bool = False,
) -> list[Measured]:
    """Predictions of a model for held-out sections, beside those of baselines fitted on the training sections, if any.

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

    def predicted(section: Section) -> np.ndarray:
        values = predict_crops(predictor, crops[section.name], tta=tta, bar=bar)
        return mean_in_linear(values)[None] if section.bulk else values

    with Progress(sum(len(crops[s.name].pixels) for s in sections), "spot", name="measuring", shown=progress) as bar:
        methods = {OURS: {section.name: predicted(section) for section in sections}, **baselines}
    train_pcc = {label: _mean_pcc(train, values, targets) for label, values in methods.items() if train}
    train_variance = _variance([counts[section.name] for section in train])
    spots = [
        Measured(
            name=section.name,
            patient=section.patient,
            xy=section.xy,
            targets=targets[section.name],
            predicted=methods[OURS][section.name],
            baselines={label: values[section.name] for label, values in baselines.items()},
            counts=counts[section.name],
            train_pcc=train_pcc,
            train_variance=train_variance,
        )
        for section in test
    ]
    slides = [of for of, section in zip(spots, test, strict=True) if section.bulk]
    spots = [of for of, section in zip(spots, test, strict=True) if not section.bulk]
    return spots + ([_together(slides)] if slides else [])


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
        baselines[label] = ridge(own, without_noise, _parts(train))
    return baselines


def _depth(counts: np.ndarray | None, spots: int) -> np.ndarray:
    return np.full(spots, np.nan) if counts is None else depth(counts)


def _parts(train: Sequence[Section]) -> np.ndarray:
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
    return Measured(
        name="bulk",
        patient=", ".join(dict.fromkeys(slide.patient for slide in slides)),
        xy=np.full((len(slides), 2), np.nan),
        targets=np.concatenate([slide.targets for slide in slides]),
        predicted=np.concatenate([slide.predicted for slide in slides]),
        baselines={name: np.concatenate([slide.baselines[name] for slide in slides]) for name in slides[0].baselines},
        counts=None,
        train_pcc=slides[0].train_pcc,
        train_variance=slides[0].train_variance,
    )
