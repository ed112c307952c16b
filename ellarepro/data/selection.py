"""One fixed random order of a set, balanced in classes at every length: what a smaller set is the beginning of."""

import torch
from torch import Tensor


def balanced_order(labels: Tensor, generator: torch.Generator, groups: Tensor | None = None) -> Tensor:
    """A random permutation (N,) in which every beginning holds as many of each label (N,) as of any other.

    The counts differ by at most one until a class runs out. With `groups` (N,), a coarser labelling of which every
    label belongs to one, the groups are balanced first and the labels within each group second.
    """
    order = _in_turn(torch.randperm(len(labels), generator=generator), labels)
    return order if groups is None else _in_turn(order, groups)


def _in_turn(order: Tensor, labels: Tensor) -> Tensor:
    """Reorder `order` (N,) into rounds with one sample of each label (N,), each label's own order kept."""
    labels = labels[order]
    counts = torch.bincount(labels)
    first = counts.cumsum(0) - counts
    by_label = torch.argsort(labels, stable=True)
    rounds = torch.empty_like(by_label)
    rounds[by_label] = torch.arange(len(labels)) - first[labels[by_label]]
    return order[torch.argsort(rounds, stable=True)]
