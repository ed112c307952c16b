"""The rule of the steps on the weights, and their rate."""

import math
from typing import Any

import torch
from torch import nn

from ellarepro.settings.parts import WeightSettings


def optimiser_of(model: nn.Module, settings: WeightSettings) -> torch.optim.Optimizer:
    """SGD or Adam on the trainable tensors of `model`; each group has its `lr_scale`, which multiplies the rate."""
    groups = _parameter_groups(model, settings.relative)
    if settings.optimiser == "sgd":
        return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum, fused=True)
    return torch.optim.Adam(groups, lr=settings.lr, fused=True)


def learning_rate(settings: WeightSettings, step: int, steps_per_epoch: int) -> float:
    """Rate of a step, counted from 0: a cosine over all epochs, during the warm-up times a line from 0 to 1."""
    total = settings.epochs * steps_per_epoch
    rate = settings.min_lr + (settings.lr - settings.min_lr) * (1 + math.cos(math.pi * step / total)) / 2
    rising = settings.warmup * steps_per_epoch
    return rate * (step + 1) / rising if step + 1 < rising else rate


def _parameter_groups(model: nn.Module, relative: bool) -> list[dict[str, Any]]:
    """One group for all tensors, or with `relative` one a tensor with its learning-rate scale."""
    if not relative:
        return [{"params": [p for p in model.parameters() if p.requires_grad], "lr_scale": 1.0}]
    groups = []
    for module in model.modules():
        tensors = [p for p in module.parameters(recurse=False) if p.requires_grad]
        scales = [p.detach().square().mean().sqrt().item() for p in tensors]
        # A bias starts at zero and has no scale of its own: it takes that of its layer's weight, the first tensor.
        groups += [{"params": [p], "lr_scale": scale or scales[0]} for p, scale in zip(tensors, scales, strict=True)]
    return groups
