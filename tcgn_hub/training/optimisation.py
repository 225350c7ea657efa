"""What is trained, by which optimiser, at which rate."""

from __future__ import annotations

from typing import Any

import torch
from timm.layers import DropPath, calculate_drop_path_rates
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from timm.scheduler import CosineLRScheduler
from torch import nn

from tcgn_hub.training.recipe import Recipe, Steps

_NORMS = (nn.modules.batchnorm._BatchNorm,)


def freeze(model: Any, recipe: Recipe) -> list[nn.Module]:
    """Set what drops out and how norms follow batches, and keep what a recipe does not train.

    Returns the modules that have to stay in eval mode.
    """
    set_dropout(model, recipe.drop_rate)
    for module in model.modules():
        if isinstance(module, _NORMS):
            module.momentum = recipe.norm_momentum
    if recipe.drop_path:
        rates: Any = calculate_drop_path_rates(recipe.drop_path, [len(s.blocks) for s in model.stages], stagewise=True)
        for stage, of_blocks in zip(model.stages, rates, strict=True):
            for block, rate in zip(stage.blocks, of_blocks, strict=True):
                block.drop_path = DropPath(rate)
    parts = {"last-stage": [model.stages[-1], model.final_conv, model.head], "all": [model], "probe+all": [model]}
    trained = parts.get(recipe.tune, [model.head])
    model.requires_grad_(False)
    for module in trained:
        module.requires_grad_(True)
    inside = {m for module in trained for m in module.modules()}
    return [
        m
        for m in model.modules()
        if (m not in inside and not inside.intersection(m.modules())) or (recipe.freeze_norm and isinstance(m, _NORMS))
    ]


def set_dropout(model: nn.Module, rate: float) -> None:
    """Give all dropout of a model one rate."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = rate


def make_optimizer(model: Any, recipe: Steps) -> torch.optim.Optimizer:
    """AdamW with layer-wise learning rates; biases and norms do not decay."""
    undecayed = tuple(getattr(model, "no_weight_decay", set)())
    if hasattr(model, "group_matcher"):
        groups = param_groups_layer_decay(
            model, recipe.weight_decay, no_weight_decay_list=undecayed, layer_decay=recipe.layer_decay
        )
    else:
        groups = param_groups_weight_decay(model, recipe.weight_decay, no_weight_decay_list=undecayed)
    return torch.optim.AdamW(groups, lr=recipe.lr, fused=True)


def make_schedule(optimizer: torch.optim.Optimizer, recipe: Steps, steps: int) -> CosineLRScheduler:
    """A linear rise, then half a cosine down to 0, for a cycle of so many steps."""
    warmup = min(round(recipe.warmup * steps), steps - 1)
    return CosineLRScheduler(
        optimizer,
        t_initial=steps - warmup,
        warmup_t=warmup,
        warmup_lr_init=recipe.lr * 0.04,
        warmup_prefix=True,
        t_in_epochs=False,
    )
