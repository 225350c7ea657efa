"""finetune(): sections in, a model directory out."""

from __future__ import annotations

import copy
import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tcgn_hub.data.checks import check_sections
from tcgn_hub.data.readers import Data, as_sections
from tcgn_hub.data.sections import Section
from tcgn_hub.data.targets import variable_genes
from tcgn_hub.errors import TrainingError
from tcgn_hub.evaluation.encoders import Encoder, encoder_features, encoder_labels, load_encoder
from tcgn_hub.evaluation.evaluate import summarise
from tcgn_hub.evaluation.measuring import measure
from tcgn_hub.evaluation.splits import Split, check_seen, make_split
from tcgn_hub.evaluation.tables import tables
from tcgn_hub.panels import load_panel
from tcgn_hub.result import OURS
from tcgn_hub.text import option, some
from tcgn_hub.training.checkpoints import check_folder, remove_checkpoints
from tcgn_hub.training.distributed import Processes
from tcgn_hub.training.fingerprint import fingerprint
from tcgn_hub.training.recipe import Recipe
from tcgn_hub.training.results import described, write_results
from tcgn_hub.training.start import Start, starting_model
from tcgn_hub.training.trainer import Trainer
from tcgn_hub.weights.info import WeightsInfo

_logger = logging.getLogger(__name__)


def finetune(
    data: Data,
    *,
    genes: str | Path | Sequence[str] | int,
    out: str | Path,
    recipe: Recipe | None = None,
    split: str | Split = "patient",
    test: Sequence[str] | None = None,
    allow_seen: Sequence[str] = (),
    encoders: Sequence[str] = (),
    encoder_um: Sequence[float] | None = None,
    resume: bool = False,
    device: str = "auto",
    workers: int = 0,
    cache: str | Path | None = None,
    checkpoint_minutes: float = 10,
    metadata: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Train TCGN on the spots of sections, and measure it once on sections held out.

    Targets are ``log10(1 + 10^4 count / sum of the panel's counts)`` (Xiao et al. 2024); the loss compares predictions
    to targets from which noise was removed, see `Recipe.components`. What was read, left out and found doubtful is
    shown as a table before training begins. Started by ``torchrun``, several processes share each batch.

    Args:
        data: Sections, or what `tcgn_hub.read_sections` takes.
        genes: Gene panel, see `tcgn_hub.panels.load_panel`; or how many of the most variable genes to take, chosen
            on the training sections.
        out: Folder to write: ``model.safetensors``, ``config.json``, ``README.md`` (the model card), ``metrics.json``,
            ``per_gene.csv``, ``splits.json``, ``history.csv`` and ``figures/``.
        recipe: How to train.
        split: 'patient' holds out patients, 'section' sections whatever their patient, 'none' nothing; or a split.
        test: Names of the patients or sections to hold out; with 'patient' and None, about a fifth of the patients.
        allow_seen: Sections or patients to test on although the weights that training starts from have seen them; all
            results then say so.
        encoders: Frozen networks to compare the trunk of TCGN with, each by itself and beside it, by the same ridge
            regression; for a recipe that tunes 'probe'. A model of timm that has trained parameters,
            'hf-hub:ORG/NAME', or 'local-dir:DIR'. Which is best is said by leaving out training sections; the model
            that is written is TCGN's all the same.
        encoder_um: Sides of the patches that they see, in micrometres, whose features stand side by side; if None, the
            patch that TCGN sees.
        resume: Continue the run in ``out`` where it was interrupted; it ends with the weights that it would have had.
        device: Device to train on; 'auto' is CUDA where there is one.
        workers: Processes that prepare crops.
        cache: Folder to keep crops, and features of frozen networks, in, for several runs on the same data; below
            ``out``, for this run, if None.
        checkpoint_minutes: How often the state of the run is saved. It is saved too at Ctrl-C and SIGTERM.
        metadata: What else to record in the block ``tcgn`` of ``config.json``, such as the licence of the data.
        progress: Show progress bars on stderr where that is a terminal, and else log a line a minute.

    Returns:
        What ``metrics.json`` holds: what the run follows from (recipe, weights with their sha256, panel, split, data),
        spots, and the held-out results if anything was held out. Of several processes, the others return nothing.

    Raises:
        SectionError: Data are missing or malformed, the split is not possible, or what is to be tested on was seen by
            the weights that training starts from.
        PanelError: The panel is not usable.
        WeightsError: The weights to start from cannot be had.
        TrainingError: ``out`` holds another run, or the recipe does not fit the data.
        OutputError: The results cannot be written.
        KeyboardInterrupt: At Ctrl-C or SIGTERM, after the state was saved.
    """
    recipe, out = recipe or Recipe(), Path(out)
    if encoders and recipe.tune != "probe":
        raise TrainingError(f"Frozen networks are compared with a probe: say {option('tune', 'probe')}.")
    if encoder_um and not encoders:
        raise TrainingError(f"{option('encoder_um')} is of patches that frozen networks see, and none is named.")
    check_folder(out, resume=resume)
    with Processes(device) as processes:
        sections = as_sections(data)
        chosen = (
            split if isinstance(split, Split) else make_split(sections, by=split, test=test, val=bool(recipe.patience))
        )
        panel = _panel(genes, [s for s in sections if s.name in chosen.train])
        return run(
            sections,
            panel,
            out,
            recipe=recipe,
            split=chosen,
            allow_seen=allow_seen,
            processes=processes,
            cache=cache,
            encoders=encoders,
            encoder_um=encoder_um,
            metadata=metadata or {},
            workers=workers,
            checkpoint_minutes=checkpoint_minutes,
            progress=progress,
        )


def run(
    sections: Sequence[Section],
    panel: Sequence[str],
    out: Path,
    *,
    recipe: Recipe,
    split: Split,
    allow_seen: Sequence[str],
    processes: Processes,
    cache: str | Path | None,
    metadata: Mapping[str, Any],
    progress: bool,
    encoders: Sequence[str] = (),
    encoder_um: Sequence[float] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """One run, when sections, panel and split are known; ``options`` are those of `Trainer.fit`."""
    # refused now what would fail once it is written, after all of the training
    WeightsInfo.from_json(dict(metadata), name="the metadata", genes=tuple(panel))
    start = starting_model(recipe, panel)
    allowed = refuse_seen(start, sections, split, allow_seen)
    checked, table = check_sections(sections, panel)
    if processes.first:
        _logger.info("%s", table)
        _logger.info("%s", _beginning(start, checked, panel, split, recipe))
    # before hours are spent, whether they can be had
    loaded = {label: load_encoder(name, device=processes.device) for label, name in encoder_labels(encoders).items()}
    trainer = Trainer(
        checked,
        recipe,
        panel=panel,
        split=split,
        start=start,
        processes=processes,
        cache=cache or out / "crops",
        progress=progress,
    )
    stated = fingerprint(sections, panel=panel, split=split, recipe=recipe, parent=start.parent)
    model = trainer.fit(out, fingerprint=stated, **options)
    metrics: dict[str, Any] = {}
    if processes.first:
        evaluation, measured = None, []
        features = _beside(trainer, loaded, encoder_um, cache or out / "crops", progress)
        probe = _compared(trainer, features)
        # fused, as `tcgn_hub.load` will predict with it
        fused = copy.deepcopy(model).fuse()  # type: ignore[operator]
        trained = [trainer.sections[name] for name in split.train]
        blocks = described(trainer.predictor(fused), trained, trainer.crops)
        if split.test:
            measured = measure(
                trainer.predictor(fused, typical=blocks["typical"]),
                train=trained,
                test=[trainer.sections[name] for name in split.test],
                panel=panel,
                crops=trainer.crops,
                features=features,
                progress=progress,
            )
            evaluation = summarise(measured, panel)
            if allowed:
                evaluation.summary["allowed_seen"] = allowed
            _logger.info("%s", tables(evaluation))
        metrics = write_results(
            trainer,
            model,
            out,
            evaluation=evaluation,
            measured=measured,
            blocks=blocks,
            lineage=start.lineage(s for s in sections if s.name in (*split.train, *split.val)),
            fingerprint=stated,
            metadata=metadata,
            probe=probe,
        )
        remove_checkpoints(out)
        if cache is None:
            shutil.rmtree(out / "crops", ignore_errors=True)
    processes.wait()
    return metrics


def _beginning(start: Start, sections: Sequence[Section], panel: Sequence[str], split: Split, recipe: Recipe) -> str:
    """What is said before the first long step."""
    train = [section for section in sections if section.name in split.train]
    spots, known = sum(len(section.spots) for section in train), start.parent
    how = f"{recipe.epochs} epochs" if recipe.epochs else "a head in closed form"
    return (
        f"Starting {f'from {known.name}' if known else 'from scratch'}: {spots} spots of {some(s.name for s in train)},"
        f" {len(panel)} genes, {how}. Crops of the spots come first."
    )


def _beside(
    trainer: Trainer,
    encoders: Mapping[str, Encoder],
    encoder_um: Sequence[float] | None,
    cache: str | Path,
    progress: bool,
) -> dict[str, dict[str, np.ndarray]]:
    """Features of frozen networks for each section, by label; of each network alone, and with those of the trunk."""
    sides = encoder_um or ([] if trainer.patch_um is None else [trainer.patch_um])
    features = {}
    for label, encoder in encoders.items():
        field: dict[str, Any] = {"patch_um": sides, "crop_px": trainer.crop_px, "cache": cache, "progress": progress}
        own = {name: encoder_features(encoder, section, **field) for name, section in trainer.sections.items()}
        features[label] = own
        features[f"{label} + {OURS}"] = {n: np.concatenate([x, trainer.features[n][0]], axis=1) for n, x in own.items()}
    return features


def _compared(trainer: Trainer, features: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, Any] | None:
    """How the probe was chosen, and what other features would have reached on training sections that are left out."""
    if trainer.probe is None:
        return None
    stated = trainer.probe.to_json()
    if not features:
        return stated
    ours = {name: of[0] for name, of in trainer.features.items()}
    reached = {
        label: trainer.probe_of({name: x[None] for name, x in of.items()}).median_pcc
        for label, of in {OURS: ours, **features}.items()
    }
    known = {label: score for label, score in reached.items() if score is not None}
    best = max(known, key=known.__getitem__, default=None)
    if best is not None:
        scores = ", ".join(f"{label} {score:.3f}" for label, score in known.items())
        _logger.info("Where training spots are left out, the features of %s are best (median PCC: %s).", best, scores)
    return {**stated, "compared": reached, "best": best}


def refuse_seen(start: Start, sections: Sequence[Section], split: Split, allow: Sequence[str]) -> list[str]:
    """Refuse to test on what the start or its parents have seen, by patient if the split is; returns those allowed."""
    tested = [section for section in sections if section.name in split.test]
    if start.info is None or not tested:
        return []
    if not start.info.seen and start.info.scope == "model":
        _logger.warning("%s does not say what it has seen, so that a leak cannot be excluded.", start.info.name)
    trained = {(s.study, s.patient) for s in sections if s.name in (*split.train, *split.val)}
    by = "section" if trained.intersection((s.study, s.patient) for s in tested) else "patient"
    return check_seen(start.info.seen, tested, by=by, allow=allow)


def _panel(genes: str | Path | Sequence[str] | int, train: Sequence[Section]) -> list[str]:
    if not isinstance(genes, int):
        return load_panel(genes)
    spots = [section for section in train if not section.bulk]
    if genes < 1 or not spots:
        raise TrainingError("Variable genes are chosen on training sections with spots: give their number, 1 or more.")
    return variable_genes([s.counts for s in spots], [s.genes for s in spots], genes)
