"""A small trainer: sections in, a model directory out that timm, the command line and the Hub all load."""

from __future__ import annotations

import csv
import io
import json
import logging
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tcgn_hub.data.panels import load_panel
from tcgn_hub.data.sections import Section, expression_targets, spot_crops
from tcgn_hub.errors import SectionError, TrainingError
from tcgn_hub.evaluation import color_texture_features, pearson, reliable, ridge_predict
from tcgn_hub.outputs.files import write_text
from tcgn_hub.transforms import CROP_PX, INPUT_PX, to_input

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["UNITS", "finetune"]

_logger = logging.getLogger(__name__)

UNITS = "log10(1 + 10^4 count / sum of the panel's counts)"
"""Units of the targets, and so of what a trained model predicts."""

_JITTER_PX = 24
"""How far a training crop may move from the spot's centre: the spot reaches beyond the crop on either side."""


def finetune(
    sections: Sequence[Section],
    *,
    genes: str | Path | Sequence[str],
    out: str | Path,
    test: Sequence[Section] = (),
    model: nn.Module | None = None,
    epochs: int = 22,
    batch_size: int = 32,
    lr: float = 2.5e-4,
    weight_decay: float = 0.05,
    components: int | None = 20,
    crop_px: int = CROP_PX[20],
    seed: int = 0,
    device: str = "cpu",
    amp: bool = True,
    facts: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Train TCGN on the spots of sections, and measure it once on sections held out.

    Targets are ``log10(1 + 10^4 count / sum of the panel's counts)`` (Xiao et al. 2024). With ``components``, the loss
    compares predictions to targets from which noise was removed: each training section's targets are centred, scaled
    by gene, and projected on the leading principal components over genes. Spots whose panel counts are all zero are
    left out. Optimised by AdamW with a one-cycle schedule; crops are moved, flipped, rotated by 90 degrees and
    slightly shifted in colour. An interrupted run continues from its last whole epoch and ends with the same weights.

    Args:
        sections: Sections to train on.
        genes: Gene panel, see `tcgn_hub.data.panels.load_panel`.
        out: Folder to write the model directory to: ``model.safetensors``, ``config.json``, ``metrics.json``,
            ``per_gene.csv``, ``history.csv``, and ``checkpoint.pt`` while it is needed to resume.
        test: Sections to measure the final model on, and the ridge baseline; nothing is chosen on them.
        model: A timm model with one output per gene to start from; a new ``tcgn_base`` if None.
        epochs: Passes over the training spots.
        batch_size: Patches per step.
        lr: Highest learning rate of the schedule.
        weight_decay: Decoupled weight decay.
        components: Principal components kept of the training targets, None to keep all.
        crop_px: Side of the crop around a spot in image pixels, resized to 224.
        seed: Seed of initialisation, order, augmentation and dropout.
        device: Device to train on.
        amp: Compute in bfloat16 where it is safe.
        progress: Show a progress bar on stderr where that is a terminal.
        facts: What else to record in the block ``tcgn`` of ``config.json``, such as the licence of the data.

    Returns:
        What ``metrics.json`` holds: settings, spots used and left out, and the held-out results if ``test`` is given.

    Raises:
        SectionError: Data of a section are missing or malformed, or a section is in both sets.
        PanelError: The panel is not usable.
        TrainingError: ``out`` holds another run, or ``model`` does not fit the panel.
    """
    import timm
    import torch
    from huggingface_hub.utils import tqdm

    import tcgn_hub.registry  # noqa: F401  (makes timm know tcgn_base)
    from tcgn_hub.weights.model_dir import save_model_dir

    panel = load_panel(genes)
    both = {section.name for section in sections} & {section.name for section in test}
    if both:
        raise SectionError(f"Sections {', '.join(sorted(both))} are given both to train and to test on.")
    out = Path(out)
    settings: dict[str, Any] = {
        "train": [section.name for section in sections],
        "test": [section.name for section in test],
        "genes": len(panel),
        "epochs": epochs,
        "batch_size": batch_size,
        "lr": lr,
        "weight_decay": weight_decay,
        "components": components,
        "crop_px": crop_px,
        "seed": seed,
        "amp": amp,
    }

    torch.manual_seed(seed)
    if model is None:
        model = timm.create_model("tcgn_base", num_classes=len(panel))
    if getattr(model, "num_classes", None) != len(panel):
        raise TrainingError(f"The model has {model.num_classes} outputs, but the panel has {len(panel)} genes.")
    model.to(device)

    data = [_load(section, panel, crop_px + 2 * _JITTER_PX) for section in sections]
    # read now, so that a broken file is found before hours of training and not after
    test_data = [_load(section, panel, crop_px) for section in test]
    crops = torch.from_numpy(np.concatenate([crops for crops, _ in data]))
    raw = [targets for _, targets in data]
    mean, scale, targets = _denoise(raw, components)
    _start_head(model, mean)

    optimizer = torch.optim.AdamW(_parameter_groups(model, weight_decay), lr=lr)
    steps = -(-len(crops) // batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=lr, total_steps=max(2, epochs * steps), pct_start=0.15
    )

    state_file = out / "checkpoint.pt"
    history: list[dict[str, float]] = []
    if state_file.exists():
        state = torch.load(state_file, map_location="cpu", weights_only=True)
        if state["settings"] != settings:
            raise TrainingError(f"{out} holds a run with other settings; give another folder or delete {state_file}.")
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        history = state["history"]
        _logger.info("Continuing after epoch %d of %d.", len(history), epochs)
    out.mkdir(parents=True, exist_ok=True)

    bar = tqdm(total=epochs * steps, initial=len(history) * steps, unit="step", disable=None if progress else True)
    target_tensor, scale_tensor = torch.from_numpy(targets), torch.from_numpy(scale).to(device)
    for epoch in range(len(history), epochs):
        start = time.perf_counter()
        # all randomness of an epoch follows from its number, so that a resumed run repeats it
        torch.manual_seed(seed * 100_003 + epoch)
        model.train()
        total = 0.0
        for batch in torch.randperm(len(crops)).split(batch_size):
            x = to_input(_augment(crops[batch], crop_px).to(device))
            with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=amp):
                predicted = model(x)
            loss = ((predicted.float() - target_tensor[batch].to(device)) / scale_tensor).square().mean()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            total += loss.item() * len(batch)
            bar.update()
        seconds = time.perf_counter() - start
        history.append({"epoch": epoch + 1, "loss": total / len(crops), "seconds": seconds})
        _logger.info(
            "Epoch %d of %d: loss %.4f, %.1f patches/s.", epoch + 1, epochs, history[-1]["loss"], len(crops) / seconds
        )
        _save_state(
            {
                "settings": settings,
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "schedule": schedule.state_dict(),
                "history": history,
            },
            state_file,
        )

    bar.close()
    # the weights are kept in float16, so that is what is measured
    model.half().float()

    metrics: dict[str, Any] = {
        "settings": settings,
        "spots": {section.name: len(t) for section, t in zip(sections, raw, strict=True)},
        "spots_without_counts": {
            section.name: len(section.spots) - len(t) for section, t in zip(sections, raw, strict=True)
        },
    }
    known: dict[str, Any] = {
        "units": UNITS,
        "crop": {"px": crop_px, "resized_to": INPUT_PX},
        "training_data": {"sections": settings["train"], "held_out": settings["test"]},
        **(facts or {}),
    }
    if test:
        offset = _JITTER_PX
        centre = crops[:, :, offset : offset + crop_px, offset : offset + crop_px].numpy()
        held_out, per_gene = _measure(
            model, dict(zip(settings["test"], test_data, strict=True)), color_texture_features(centre), raw, device
        )
        metrics["held_out"] = held_out
        known["held_out"] = {
            **held_out,
            "pcc": per_gene["pcc"].round(4).tolist(),
            "reliable": [gene for gene, passed in zip(panel, per_gene["reliable"], strict=True) if passed],
        }
        rows = [{"gene": gene, **{k: v[i].item() for k, v in per_gene.items()}} for i, gene in enumerate(panel)]
        _write_csv(out / "per_gene.csv", rows)
    save_model_dir(model, out, genes=panel, facts=known)
    _write_csv(out / "history.csv", history)
    write_text(out / "metrics.json", json.dumps(metrics, indent=2) + "\n")
    return metrics


def _load(section: Section, panel: Sequence[str], size: int) -> tuple[np.ndarray, np.ndarray]:
    """Crops (n, 3, size, size) and targets (n, genes) of the spots that have counts."""
    targets = expression_targets(section, panel)
    counted = ~np.isnan(targets).any(axis=1)
    _logger.info(
        "Section %s: %d spots, %d left out because their panel counts are all zero, %d without a counterpart.",
        section.name,
        counted.sum(),
        (~counted).sum(),
        len(section.unmatched),
    )
    if not counted.any():
        raise SectionError(f"Section {section.name} has no spot with counts of the panel's genes.")
    return spot_crops(section, size)[counted], targets[counted]


def _denoise(targets: list[np.ndarray], components: int | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean and scale of each gene, and the targets to train on, in the units of the targets."""
    everything = np.concatenate(targets)
    mean = everything.mean(axis=0)
    centred = everything - mean
    if components is not None:
        centred = np.concatenate([t - t.mean(axis=0) for t in targets])
    scale = centred.std(axis=0)
    # a gene that hardly varies must not drown the others
    scale = np.maximum(scale, 0.1 * np.median(scale)) + 1e-6
    if components is not None:
        scaled = centred / scale
        axes = np.linalg.svd(scaled, full_matrices=False)[2][:components]
        centred = scaled @ axes.T @ axes * scale
    return mean, scale, (centred + mean).astype(np.float32)


def _start_head(model: nn.Module, mean: np.ndarray) -> None:
    """Let an untrained classifier begin at the gene means."""
    import torch

    with torch.no_grad():
        head: Any = model.get_classifier()  # type: ignore[operator]
        if not head.bias.any():
            head.bias.copy_(torch.from_numpy(mean))
            head.weight.mul_(0.1)


def _parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    from timm.optim import param_groups_weight_decay

    skip: set[str] = getattr(model, "no_weight_decay", set)()
    return param_groups_weight_decay(model, weight_decay, no_weight_decay_list=tuple(skip))


def _augment(crops: torch.Tensor, size: int) -> torch.Tensor:
    """Move, flip, rotate by 90 degrees and shift the colours of crops (B, 3, S, S), giving (B, 3, size, size)."""
    import torch

    room = crops.shape[-1] - size
    out = torch.empty(len(crops), 3, size, size)
    moves = torch.randint(0, room + 1, (len(crops), 2)).tolist()
    turns = torch.randint(0, 8, (len(crops),)).tolist()
    gain = 1 + 0.1 * (2 * torch.rand(len(crops), 3, 1, 1) - 1)
    shift = 12 * (2 * torch.rand(len(crops), 3, 1, 1) - 1)
    for target, crop, (top, left), turn in zip(out, crops, moves, turns, strict=True):
        piece = crop[:, top : top + size, left : left + size].rot90(turn % 4, (1, 2))
        target[:] = piece.flip(2) if turn >= 4 else piece
    return (out * gain + shift).clamp(0, 255)


def _measure(
    model: nn.Module,
    test: dict[str, tuple[np.ndarray, np.ndarray]],
    train_features: np.ndarray,
    train_targets: list[np.ndarray],
    device: str,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Held-out correlations of the model and of ridge regression: a summary, and one array a gene."""
    measured = [targets for _, targets in test.values()]
    predicted = [_predict(model, crops, device) for crops, _ in test.values()]
    baseline = [
        ridge_predict(train_features, np.concatenate(train_targets), color_texture_features(crops))
        for crops, _ in test.values()
    ]
    per_section = {
        name: {
            "spots": len(m),
            "median_pcc": float(np.median(pearson(p, m))),
            "median_pcc_ridge": float(np.median(pearson(b, m))),
        }
        for name, p, b, m in zip(test, predicted, baseline, measured, strict=True)
    }
    # a gene's value is its mean over sections: pooled spots would reward knowing the section
    pcc = np.mean([pearson(p, m) for p, m in zip(predicted, measured, strict=True)], axis=0)
    pcc_ridge = np.mean([pearson(b, m) for b, m in zip(baseline, measured, strict=True)], axis=0)
    passed = reliable(pcc, sum(map(len, measured)))
    summary = {
        "sections": per_section,
        "median_pcc": float(np.median(pcc)),
        "median_pcc_ridge": float(np.median(pcc_ridge)),
        "reliable_genes": int(passed.sum()),
        "spots": sum(map(len, measured)),
    }
    return summary, {"pcc": pcc, "pcc_ridge": pcc_ridge, "reliable": passed}


def _predict(model: nn.Module, crops: np.ndarray, device: str) -> np.ndarray:
    import torch

    model.eval()
    with torch.inference_mode():
        batches = torch.from_numpy(crops).split(32)
        return np.concatenate([model(to_input(batch.to(device))).cpu().numpy() for batch in batches])


def _save_state(state: dict[str, Any], path: Path) -> None:
    import torch

    part = path.with_suffix(".part")
    torch.save(state, part)
    os.replace(part, path)


def _write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())
