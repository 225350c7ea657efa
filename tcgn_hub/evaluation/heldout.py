"""evaluate(): a model, its baselines and predictions of other methods on sections that were held out."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from tcgn_hub.data.checks import check_sections
from tcgn_hub.data.crops import spot_crops
from tcgn_hub.data.readers import Data, as_sections
from tcgn_hub.data.sections import Section
from tcgn_hub.errors import SectionError
from tcgn_hub.evaluation.encoders import encoder_features, encoder_labels, load_encoder
from tcgn_hub.evaluation.evaluate import summarise
from tcgn_hub.evaluation.measuring import measure, pooled_features
from tcgn_hub.evaluation.protocols import hest_probes
from tcgn_hub.evaluation.referee import read_given, stated, with_predictions
from tcgn_hub.evaluation.splits import check_seen
from tcgn_hub.panels import load_panel
from tcgn_hub.prediction.predictor import Predictor, load_weights
from tcgn_hub.result import OURS, Evaluation
from tcgn_hub.text import option, some
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
    compile: str = "auto",
    backend: str | None = None,
    progress: bool = False,
) -> Evaluation:
    """Measure weights, and predictions of other methods, on sections that the weights and their parents have not seen.

    The baselines are fitted on those sections of ``data`` that the weights have seen, and are not to be measured on, or
    on those named; without any, the results stand alone. They are the mean of each gene, its regression on the depth of
    the very spot that is predicted, and ridge regression on colour and texture and on the features of frozen networks.

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
        test: Names of the sections or patients to measure on; if None, all sections that the weights have not seen and
            that are not named in ``train``.
        train: Names of the sections or patients to fit the baselines on, if not on those that the weights have seen.
        by: 'patient' refuses sections of patients that the weights have seen; 'section' takes them.
        allow_seen: Names of sections to measure on although they or their patients were seen; the table says so.
        encoders: Frozen networks, each a baseline: a model of timm that has trained parameters, 'hf-hub:ORG/NAME', or
            'local-dir:DIR'.
        encoder_um: Sides of the patches that they see, in micrometres, whose features stand side by side; if None, the
            patch that the weights see.
        out: Folder to write ``metrics.json``, ``per_gene.csv``, ``held_out.npz``, ``figures/`` and ``evaluation.html``
            to.
        tta: Over how many rotations and reflections of a patch to average its prediction, 1 to 8.
        crop_px: Side of a patch in pixels of the image, instead of in micrometres.
        cache: Folder to keep crops and features of networks in.
        device: As in `tcgn_hub.load`, and so are the others.
        precision: Precision of the products, as of `tcgn_hub.load`.
        compile: Whether to compile the model, as of `tcgn_hub.load`.
        backend: What computes.
        progress: Show progress bars on stderr where that is a terminal, and else log a line a minute.

    Raises:
        SectionError: Data or predictions are missing or malformed, no section is left to measure on, or one was seen,
            see `tcgn_hub.evaluation.splits.check_seen`.
        WeightsError: The weights, or those of a frozen network, cannot be had.
        OutputError: The results cannot be written.
    """
    sections, given = as_sections(data), dict(predictions or {})
    if genes is not None and (weights is not None or not given):
        raise SectionError("Genes are given for predictions that stand alone; weights are measured on those they have.")
    named = [section for section in sections if _is_named(section, test, train)]
    predictor, info = None, _default()
    if weights is not None or not (given and (genes is not None or _are_left_out(info, named, by, allow_seen))):
        predictor = (
            weights
            if isinstance(weights, Predictor)
            else load_weights(weights, device=device, precision=precision, compile=compile, backend=backend)
        )
        info = predictor.info
    was_seen = {s.name: predictor is not None and any(map(s.seen().is_same, info.seen)) for s in sections}
    chosen = [section for section in named if test is not None or not was_seen[section.name]]
    unknown = set(test or ()) - {name for section in sections for name in (section.name, section.patient)}
    if unknown or not chosen:
        what = f"There is no section or patient {', '.join(sorted(unknown))}" if unknown else "No section is left"
        raise SectionError(f"{what} to measure on; the sections are {', '.join(s.name for s in sections)}.")
    allowed: list[str] = []
    if predictor is not None:
        if not info.seen:
            _logger.warning("%s does not say what it has seen, so that a leak cannot be excluded.", info.name)
        allowed = check_seen(info.seen, chosen, by=by, allow=allow_seen)
    fitted = _to_fit(sections, chosen, train, was_seen)
    if not fitted:
        why = f"none of the sections that {info.name} has seen is among the data"
        _logger.warning("No baselines: %s.", why if predictor else "there are no sections to fit them on")
    loaded = {label: load_encoder(name, device=device) for label, name in encoder_labels(encoders).items() if fitted}
    panel = info.genes if predictor is not None else _panel(info.genes if genes is None else load_panel(genes), chosen)

    needs_images = predictor is not None or bool(fitted)
    checked, table = check_sections([*fitted, *chosen], panel, images=needs_images)
    _logger.info("%s", table)
    sides: dict[str, Any] = {"train": checked[: len(fitted)], "test": checked[len(fitted) :], "panel": panel}
    # refused before hours are spent on ours
    others = read_given(given, predictions_scale, sides["test"], panel, rows={s.name: s.spots for s in sections})
    size: dict[str, Any] = {"crop_px": crop_px} if crop_px else {"patch_um": info.patch_um}
    fields: dict[str, Any] = size if crop_px and not encoder_um else {"patch_um": encoder_um or [info.patch_um]}
    shown: dict[str, Any] = {"cache": cache, "progress": progress}
    crops = {s.name: spot_crops(s, **shown, **size) for s in (checked if needs_images else ())}
    features = {
        label: {s.name: encoder_features(encoder, s, **shown, **fields) for s in checked}
        for label, encoder in loaded.items()
    }
    measured = measure(predictor, **sides, crops=crops, features=features, tta=tta, progress=progress)
    notes: list[str] = []
    if others:
        measured, notes = with_predictions(measured, others)
    if features and predictor is not None:
        features[OURS] = {name: pooled_features(predictor, own) for name, own in crops.items()}
    hest, probes = hest_probes(**sides, features=features)
    evaluation = summarise(measured, panel, allowed_seen=allowed, hest=hest, probes=probes)
    if others:
        evaluation.summary.update(notes=notes, predictions=stated(others))
    if out is not None:
        known: dict[str, Any] = {"weights": info.name, "sha256": info.sha256} if predictor is not None else {}
        known |= {"by": by, "tta": tta, "allowed_seen": allowed, "baselines_fitted_on": [s.name for s in fitted]}
        known |= {"encoders": list(encoders), "encoder_um": encoder_um}
        write_evaluation(evaluation, measured, out, metadata=known)
    return evaluation


def _is_named(section: Section, test: Sequence[str] | None, train: Sequence[str] | None) -> bool:
    """Whether a section may be measured on: it is named, or nothing is to be fitted on it."""
    names = {section.name, section.patient}
    return not names.intersection(train or ()) if test is None else bool(names.intersection(test))


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
