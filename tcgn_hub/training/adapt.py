"""adapt(): weights that are fitted to a section by few of its spots, and measured on the others."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tcgn_hub.correlation import centred
from tcgn_hub.data.checks import check_sections
from tcgn_hub.data.crops import SpotCrops, spot_crops
from tcgn_hub.data.readers import Data, as_sections
from tcgn_hub.data.sections import Section, expression_targets, panel_counts
from tcgn_hub.data.spots import read_spots
from tcgn_hub.devices import pick_device
from tcgn_hub.errors import SectionError, WeightsError
from tcgn_hub.evaluation.baselines import color_texture_features, depth_predict, mean_predict, ridge_predict
from tcgn_hub.evaluation.evaluate import summarise
from tcgn_hub.evaluation.splits import check_seen, spatial_parts
from tcgn_hub.evaluation.spots import spot_pitch
from tcgn_hub.files import write_text
from tcgn_hub.models.loading import load_model
from tcgn_hub.prediction.backends.torch import TorchBackend
from tcgn_hub.progress import Progress
from tcgn_hub.result import Evaluation, Measured
from tcgn_hub.ridge import Linear, fit_ridge, predict_ridge
from tcgn_hub.text import counted, option, some
from tcgn_hub.training.checkpoints import check_folder
from tcgn_hub.training.results import held_out_of
from tcgn_hub.training.start import Start
from tcgn_hub.units import UNITS, depth
from tcgn_hub.weights.card import model_card
from tcgn_hub.weights.hub import resolve
from tcgn_hub.weights.info import WeightsInfo
from tcgn_hub.weights.model_dir import info_of, save_model_dir
from tcgn_hub.weights.typical import describe_predictions
from tcgn_hub.writing.evaluations import write_evaluation

if TYPE_CHECKING:
    from torch import nn

_logger = logging.getLogger(__name__)

BEFORE = "before"
"""What the weights that are adapted are called in tables."""

LEAST_SPOTS = 5
_LEAST_LEFT = 4  # spots to measure on; of fewer a correlation says nothing

PENALTIES = tuple(10.0 ** np.arange(1, 7.25, 0.5))
"""Strengths that may be chosen among, and infinity, which leaves the weights as they are."""

_PARTS = 5
_COMPONENTS = 3
_DEPTH_SPOTS = 30  # fewer do not say how depth goes with what is predicted


@dataclass(frozen=True)
class Spots:
    """What is known of the n spots of a section, and what weights say of them."""

    section: Section  # the spots in the order of their places, those that can be used
    genes: tuple[str, ...]  # that the weights predict
    targets: np.ndarray  # see `expression_targets`, shape (n, genes)
    counts: np.ndarray  # see `panel_counts`, shape (n, genes)
    colours: np.ndarray  # see `color_texture_features`, shape (n, 32)
    hidden: np.ndarray  # of the layer before the last, float32, shape (n, hidden)
    features: np.ndarray  # means over positions of the final map, float32, shape (n, d)
    classifier: Linear  # the last layer


def adapt(
    data: Data,
    *,
    weights: str | Path | None = None,
    out: str | Path,
    spots: int | str | Path | Sequence[str] = 30,
    seed: int = 0,
    allow_seen: Collection[str] = (),
    crop_px: int | None = None,
    cache: str | Path | None = None,
    device: str = "auto",
    progress: bool = True,
) -> Evaluation:
    """Adapt weights to a section by few spots that were measured there, and measure on the others what that gained.

    The last layer is fitted by ridge regression towards the one that the weights have. How strongly it is held there is
    chosen by leaving out spots in blocks; where none is better, the weights stay as they are. Genes that were not
    measured, or are the same in all spots used, keep their coefficients.

    Args:
        data: The section, alone, or what `tcgn_hub.read_sections` takes.
        weights: As in `tcgn_hub.predict`, but for exported ones; the default weights if None.
        out: Folder to write: a model directory, the results of `tcgn_hub.evaluate` on the spots that were not used, and
            ``spots.txt``, the names of those that were.
        spots: How many, spread over the section; or their names; or a file: .txt with a name a line, or a table of
            their places, as `tcgn_hub.predict_slide` takes it.
        seed: Decides which spots are drawn.
        allow_seen: The name of the section, to adapt to it although the weights have seen it or its patient; the
            results then say so.
        crop_px: Side of a patch in pixels of the image, instead of in micrometres.
        cache: Folder to keep crops in.
        device: As in `tcgn_hub.load`.
        progress: Show progress bars on stderr where that is a terminal, and else log a line a minute.

    Returns:
        The results on the spots that were not used, of the adapted weights, of those ``before``, and of baselines that
        were fitted to the spots used. ``gain`` and ``gain_given_depth`` of ``before`` in ``methods`` are what was
        gained, each with an interval; ``notes`` of the summary say whether that is significant.

    Raises:
        SectionError: Data are missing or malformed, spots are too few or not there, or the weights have seen the
            section or its patient.
        WeightsError: The weights cannot be had, are a trunk or exported, or predict in other units.
        TrainingError: ``out`` holds something else.
        OutputError: The results cannot be written.
    """
    out = Path(out)
    check_folder(out, resume=False)
    section = _only(as_sections(data))
    start = adaptable(weights, device=device)
    info = start.info
    assert info is not None
    if not info.seen:
        _logger.warning("%s does not say what it has seen, so that a leak cannot be excluded.", info.name)
    allowed = check_seen(info.seen, [section], allow=allow_seen)
    usable = usable_spots(section, info)
    used = choose_spots(usable, spots, seed=seed)
    tissue = look_at(usable, start, crop_px=crop_px, cache=cache, progress=progress)
    penalty, fitted = fit(tissue, used)
    half = _is_half(start.model)
    if fitted is not None:
        _replace(start.model, fitted, half=half)
        fitted = _classifier(start.model)
    measured = compare(tissue, used, fitted, rest=~used)
    evaluation = summarise([measured], info.genes, allowed_seen=allowed)
    evaluation.summary["notes"] = [_verdict(evaluation, fitted is not None)]
    stated = _stated(start, section, tissue, used, fitted, evaluation, name=out.resolve().name)
    save_model_dir(start.model, out, stated, half=half)
    write_text(out / "README.md", model_card(stated.name, stated))
    write_text(out / "spots.txt", (f"{usable.spots[i]}\n" for i in np.flatnonzero(used)))
    known = {"weights": info.name, "sha256": info.sha256, "section": section.name, "spots": int(used.sum())}
    known |= {"seed": seed if isinstance(spots, int) else None, "penalty": None if fitted is None else penalty}
    write_evaluation(evaluation, [measured], out, metadata={**known, "allowed_seen": allowed})
    return evaluation


def adaptable(weights: str | Path | None, *, device: str = "auto") -> Start:
    """Weights with a last layer that can be fitted to targets of ours."""
    if weights is not None and Path(weights).suffix == ".onnx":
        raise WeightsError(f"{weights} is exported, and cannot be adapted; give the weights that it was exported from.")
    found = resolve(weights)
    info = info_of(found)
    if info is not None and (info.scope != "model" or not info.genes):
        raise WeightsError(f"{found.name} predicts no genes, so that there is nothing to adapt; fine-tune it instead.")
    model, info = load_model(found, device=pick_device(device))
    if info.units != UNITS:
        raise WeightsError(
            f"{info.name} predicts in other units ({info.units}) than {UNITS}, to which spots are fitted."
        )
    return Start(model, info, new_classifier=False)


def usable_spots(section: Section, info: WeightsInfo) -> Section:
    """The spots that have counts of the genes of weights, and a place, in an order that follows from these alone."""
    if section.bulk:
        raise SectionError(f"Section {section.name} is one bulk measurement; weights are adapted to spots.")
    measured = set(section.genes)
    known = [gene for gene in info.genes if gene in measured]
    if not known:
        raise SectionError(
            f"Section {section.name} has no gene that {info.name} predicts, such as {info.genes[0]}; its genes are"
            f" {some(section.genes, 3)}."
        )
    unknown, absent = len(measured) - len(known), len(info.genes) - len(known)
    if unknown:
        _logger.warning(
            "%s of section %s %s left out, which %s does not predict.",
            counted(unknown, "gene"),
            section.name,
            "is" if unknown == 1 else "are",
            info.name,
        )
    if absent:
        _logger.warning("%s not measured there and kept as before.", counted(absent, "gene is", "genes are"))
    (checked,), table = check_sections([section], known)
    _logger.info("%s", table)
    order = np.lexsort((np.array(checked.spots), checked.xy[:, 1], checked.xy[:, 0]))
    return checked.at(order)


def choose_spots(
    section: Section, spots: int | str | Path | Sequence[str], *, seed: int = 0, left: int = _LEAST_LEFT
) -> np.ndarray:
    """Which spots to use, bool, shape (n,); ``spots`` as of `adapt`; ``left``: how many others there have to be."""
    count = len(section.spots)
    if isinstance(spots, int):
        _check_number(spots, count, left, section.name)
        part, rng = spatial_parts(section.xy, spots), np.random.default_rng(seed)
        index = [int(rng.choice(np.flatnonzero(part == number))) for number in range(spots)]
    else:
        index = _of_file(section, Path(spots)) if isinstance(spots, (str, Path)) else _by_name(section, spots)
    used = np.zeros(count, bool)
    used[index] = True
    _check_number(int(used.sum()), count, left, section.name)
    return used


def look_at(
    section: Section,
    start: Start,
    *,
    crop_px: int | None = None,
    cache: str | Path | None = None,
    progress: bool = False,
) -> Spots:
    """What weights see of the spots of a section."""
    info = start.info
    assert info is not None
    size: dict[str, Any] = {"crop_px": crop_px} if crop_px else {"patch_um": info.patch_um}
    crops = spot_crops(section, **size, cache=cache, progress=progress)
    hidden, features = _seen(start.model, crops, progress)
    return Spots(
        section=section,
        genes=info.genes,
        targets=expression_targets(section, info.genes).astype(np.float64),
        counts=panel_counts(section, info.genes),
        colours=np.concatenate([color_texture_features(patches) for patches in crops.patches()]),
        hidden=hidden,
        features=features,
        classifier=_classifier(start.model),
    )


def fit(tissue: Spots, used: np.ndarray) -> tuple[float, Linear | None]:
    """The last layer for a section, fitted to some of its spots, and how strongly it is held where it was.

    Ridge regression of what the weights miss, of which the `_COMPONENTS` leading components are kept: of few spots the
    rest is noise. Units of the hidden layer are scaled by all spots of the section, whose pictures are known, and not
    by the few that are used; units that hardly differ there are not blown up, for elsewhere they may. The strength is
    the one with the smallest mean squared error where each of five blocks of spots is predicted from the others, in
    units of each gene's variance.

    ``used``: the spots to fit to, bool, shape (n,). Returns infinity and None where no strength is better than the
    weights as they are.
    """
    x, y = tissue.hidden[used].astype(np.float64), tissue.targets[used]
    varies = np.flatnonzero(np.ptp(y, axis=0) > 0)
    constant = int((~np.isnan(y).any(axis=0)).sum()) - len(varies)
    if not len(varies):
        raise SectionError(f"All genes are the same in all {len(y)} spots of {tissue.section.name}: give others.")
    if constant:
        _logger.warning("%s the same in all spots used, and kept as before.", counted(constant, "gene is", "genes are"))
    y = y[:, varies]
    prior = Linear(tissue.classifier.weight[:, varies], tissue.classifier.bias[varies])
    spread = tissue.hidden.std(axis=0, dtype=np.float64)
    scale = np.maximum(spread, np.median(spread))
    variance = y.var(axis=0)

    def error(predicted: np.ndarray, measured: np.ndarray) -> np.ndarray:
        return ((predicted - measured) ** 2 / variance).sum(axis=(-2, -1))

    part = spatial_parts(tissue.section.xy[used], min(_PARTS, len(y)))
    errors, as_it_is = np.zeros(len(PENALTIES)), float(error(prior(x), y))
    for number in np.unique(part):
        out = part == number
        towards = _without_noise(y[~out], prior(x[~out]))
        errors += error(predict_ridge(x[~out], towards, x[out], PENALTIES, prior=prior, scale=scale), y[out])
    if not errors.min() < as_it_is:
        return math.inf, None
    penalty = PENALTIES[int(np.argmin(errors))]
    (found,) = fit_ridge(x, _without_noise(y, prior(x)), [penalty], prior=prior, scale=scale)
    weight, bias = tissue.classifier.weight.copy(), tissue.classifier.bias.copy()
    weight[:, varies], bias[varies] = found.weight, found.bias
    return penalty, Linear(weight, bias)


def compare(tissue: Spots, used: np.ndarray, fitted: Linear | None, *, rest: np.ndarray) -> Measured:
    """What the adapted weights predict for the rest of a section, those before, and baselines of the spots used."""
    before = np.maximum(tissue.classifier(tissue.hidden[rest]), 0)
    known = depth(tissue.counts)
    return Measured(
        name=tissue.section.name,
        patient=tissue.section.patient,
        xy=tissue.section.xy[rest],
        targets=tissue.targets[rest],
        predicted=before if fitted is None else np.maximum(fitted(tissue.hidden[rest]), 0),
        baselines={
            "mean": mean_predict(tissue.targets[used], int(rest.sum())),
            "depth": depth_predict(known[used], tissue.targets[used], known[rest]),
            "ridge": ridge_predict(tissue.colours[used], tissue.targets[used], tissue.colours[rest]),
        },
        counts=tissue.counts[rest],
        predictions={BEFORE: before},
        in_units=frozenset({BEFORE}),
    )


def _only(sections: Sequence[Section]) -> Section:
    if len(sections) > 1:
        raise SectionError(
            f"Weights are adapted to one section, but there are {some(section.name for section in sections)}; name one"
            f" ({option('sections')})."
        )
    return sections[0]


def _check_number(number: int, count: int, left: int, name: str) -> None:
    if number < LEAST_SPOTS:
        few = counted(number, "spot is", "spots are")
        raise SectionError(f"{few} too few to adapt weights to; give at least {LEAST_SPOTS}.")
    if number > count - left:
        raise SectionError(
            f"{number} spots are to be used, but section {name} has {count} that can be, of which {left} have to be"
            f" left to measure on; give at most {max(count - left, 0)}."
        )


def _by_name(section: Section, names: Sequence[str]) -> list[int]:
    index = {name: i for i, name in enumerate(section.spots)}
    if unknown := [str(name) for name in names if name not in index]:
        raise SectionError(
            f"{some(unknown)}: not among the {len(index)} spots of section {section.name} that can be used, such as"
            f" {section.spots[0]}."
        )
    return [index[name] for name in names]


def _of_file(section: Section, path: Path) -> list[int]:
    """Spots of a file of names, or of places, each that of the spot it is nearest to."""
    if path.suffix == ".txt":
        try:
            names = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as err:
            raise SectionError(f"{path} cannot be read as names of spots ({err}).") from err
        return _by_name(section, [name.strip() for name in names if name.strip()])
    pitch = spot_pitch(section.xy)
    if pitch is None:
        raise SectionError(f"The spots of section {section.name} have no places; name them in a .txt file, one a line.")
    tiles = read_spots(path)
    away = np.stack([np.hypot(*(section.xy - place).T) for place in tiles.xy])
    lost = [name for name, distance in zip(tiles.names, away.min(axis=1), strict=True) if distance > pitch / 2]
    if lost:
        raise SectionError(f"{path} has spots where section {section.name} has none that can be used: {some(lost)}.")
    return away.argmin(axis=1).tolist()


def _seen(model: nn.Module, crops: SpotCrops, progress: bool) -> tuple[np.ndarray, np.ndarray]:
    """The hidden layer and the features of the centres of crops, float32, shapes (n, hidden) and (n, d)."""
    # fused, as predictions are made
    backend = TorchBackend(copy.deepcopy(model).fuse())  # type: ignore[operator]
    hidden, features = [], []
    with Progress(len(crops.pixels), "spot", name="looking", shown=progress) as bar, torch.inference_mode():
        for patches in crops.patches():
            maps = backend.model.forward_features(backend.prepare(patches.transpose(0, 2, 3, 1)))
            hidden.append(backend.model.forward_head(maps, pre_logits=True).float().cpu().numpy())
            features.append(maps.float().mean(dim=(2, 3)).cpu().numpy())
            bar.update(len(patches))
    return np.concatenate(hidden), np.concatenate(features)


def _without_noise(y: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Targets of which the weights miss the leading components alone, shape (spots, genes)."""
    missed = y - predicted
    mean = missed.mean(axis=0)
    spread = np.sqrt((centred(missed) ** 2).mean(axis=0))
    # a gene that hardly varies must not drown the others
    scale = np.maximum(spread, 0.1 * np.median(spread)) + 1e-6
    axes = np.linalg.svd((missed - mean) / scale, full_matrices=False)[2][:_COMPONENTS]
    return predicted + mean + (missed - mean) / scale @ axes.T @ axes * scale


def _classifier(model: nn.Module) -> Linear:
    last = model.get_classifier()  # type: ignore[operator]
    weight, bias = (part.detach().cpu().double().numpy() for part in (last.weight, last.bias))
    return Linear(weight.T.copy(), bias.copy())


def _replace(model: nn.Module, found: Linear, *, half: bool) -> None:
    """Give a model another last layer, in the precision in which it will be stored."""
    last = model.get_classifier()  # type: ignore[operator]
    with torch.no_grad():
        for part, values in ((last.weight, found.weight.T), (last.bias, found.bias)):
            own = torch.from_numpy(values.astype(np.float32))
            rounded = own.half().float()
            part.copy_(rounded if half and bool(rounded.isfinite().all()) else own)


def _is_half(model: nn.Module) -> bool:
    """Whether storing a model in float16 changes nothing."""
    return all(torch.equal(v, v.half().to(v.dtype)) for v in model.state_dict().values() if v.is_floating_point())


def _verdict(evaluation: Evaluation, changed: bool) -> str:
    """Whether there is a gain on the spots that were not used; what is not significant is called none."""
    if not changed:
        return "No fit predicts spots left out better than the weights as they are, which are kept: nothing is gained"
    before = evaluation.summary["methods"][BEFORE]
    said, signs = [], []
    for key, what in (("gain", "the median PCC"), ("gain_given_depth", "that given depth")):
        if before[key] is not None and before[f"{key}_interval"]:
            low, high = before[f"{key}_interval"]
            said.append(f"{what} by {before[key]:+.3f} [{low:+.3f}, {high:+.3f}]")
            signs.append("gain" if low > 0 else "loss" if high < 0 else "")
    if not said:
        return "What is gained could not be measured"
    spots = counted(evaluation.summary["spots"], "spot")
    found = f"On the {spots} not used, adapting changes {' and '.join(said)}"
    if "loss" in signs:
        return f"{found}: a loss, so keep the weights as they were"
    if "gain" not in signs:
        return f"{found}: no gain, for the intervals hold 0"
    return found + ("" if all(signs) else f"; of these only {'the first' if signs[0] else 'the second'} is a gain")


def _stated(
    start: Start,
    section: Section,
    tissue: Spots,
    used: np.ndarray,
    fitted: Linear | None,
    evaluation: Evaluation,
    *,
    name: str,
) -> WeightsInfo:
    """What is known of adapted weights: that of those before, but for what changed."""
    info = start.info
    assert info is not None
    count, others = int(used.sum()), int((~used).sum())
    data, typical = info.training_data, info.typical
    if fitted is not None:
        depths = np.where(used, depth(tissue.counts), np.nan) if count >= _DEPTH_SPOTS else None
        values = np.maximum(fitted(tissue.hidden), 0).astype(np.float32)
        described, known = describe_predictions(values, depths), info.predicted_in_training
        if described is not None and known is not None and known.learned_depth is not None:
            # depth is of the features, which stay; what goes with it does not
            learned = known.learned_depth.among(known.learned_depth(tissue.features), values)
            described = replace(described, learned_depth=learned)
        typical = None if described is None else described.to_json()
    return WeightsInfo.from_json(
        {
            **info.to_json(),
            "training_data": {
                **data,
                "sections": list(dict.fromkeys([*(data.get("sections") or ()), section.name])),
                "patients": list(dict.fromkeys([*(data.get("patients") or ()), section.patient])),
                "held_out": [f"{others} of the {len(used)} spots of {section.name}"],
            },
            "held_out": {
                **held_out_of(evaluation),
                "protocol": f"the {others} spots of section {section.name} that were not used, when the last layer was"
                f" fitted to {count} others of it, which says nothing of another section",
            },
            "typical": typical,
            "origin": f"adapted to {count} spots of section {section.name} with tcgn_hub",
            **start.lineage([section]),
        },
        name=name,
        genes=info.genes,
        sha256="",
    )
