"""What each path of a layer is there for: what its absence costs, and how large the prior lets it be.

Neither measure depends on how a path is parameterised, unlike effective numbers of parameters.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, cast

import torch
from torch import Tensor

from ellarepro.curvature.likelihood import Classification, Likelihood
from ellarepro.curvature.scores import Scores
from ellarepro.data.batches import ordered_batches
from ellarepro.data.dataset import Samples
from ellarepro.evidence.evaluation import evaluate
from ellarepro.layers.spatial import SpatialLayer
from ellarepro.layers.tensors import EVERYWHERE, WEIGHT, by_path
from ellarepro.network import Network
from ellarepro.symmetry.labels import is_equivariant

PathUse = dict[str, dict[str, dict[str, Any]]]
"""{layer: {path: {measure: number}}}"""
Key = tuple[str, str]
"""Layer and path, as in `TensorInfo`."""


@torch.no_grad()
def path_use(
    network: Network,
    precision: Mapping[str, float],
    train: Samples,
    test: Samples,
    batch_size: int = 500,
    likelihood: Likelihood | None = None,
) -> PathUse:
    """Return what each path of each layer is used for, as {layer: {path: {measure: number}}}.

    - `nll_change` (nats a datum), and `accuracy_change` (fraction of 1) or `rmse_change`: of the plug-in predictions on
      `test`, when the path's output is replaced by its mean over `train`, position by position. The layers above then
      learn nothing of the image through this path, all else as it was. Layer "all" is all layers at once, as layers
      that tell the same stand in for each other when one is taken away.
    - `nll_change_constant`, and `accuracy_change_constant` or `rmse_change_constant`: the same, when the output is
      replaced by its mean over `train` and positions, a constant of each channel. The mean over `train` alone is a map
      from which equivariant paths can read the place, and making that map can be all that a path does.
    - `prior_variance_ratio`: variance of the path's output under the prior of its weights, mean over `train`, channels
      and positions, over that of the layer's first equivariant path. None where it has none, and where the layers below
      are dead, so that no path sees anything.

    Args:
        precision: of the prior, by tensor.
        batch_size: images a pass; changes the result by rounding only.
        likelihood: `Classification` if not given.
    """
    means, variances = _of_training_data(network, train, batch_size)
    likelihood = likelihood or Classification()
    whole = _Whole(likelihood, test, evaluate(network, test, batch_size, likelihood))
    changes: dict[Key, dict[str, float]] = {}
    constants = {key: mean.mean((-2, -1), keepdim=True) for key, mean in means.items()}
    for suffix, outputs in {"": means, "_constant": constants}.items():
        ablated = _ablations(network, outputs, whole, batch_size)
        for key, numbers in (ablated | _ablations_everywhere(network, outputs, whole, batch_size)).items():
            changes.setdefault(key, {}).update({name + suffix: number for name, number in numbers.items()})
    tensors = network.tensor_info()
    for (layer, path), names in by_path(tensors, WEIGHT).items():
        if (layer, path) in variances:
            variances[layer, path] /= prod(precision[name] for name in names)
    found: PathUse = {}
    for (layer, path), change in changes.items():
        found.setdefault(layer, {})[path] = change
    for layer, path in variances:
        reference = next((key for key in variances if key[0] == layer and is_equivariant(key[1])), None)
        unit = variances[reference] if reference else 0.0
        found[layer][path]["prior_variance_ratio"] = variances[layer, path] / unit if unit else None
    return found


def _of_training_data(network: Network, train: Samples, batch_size: int) -> tuple[dict[Key, Tensor], dict[Key, float]]:
    """Mean output `(D, H', W')` of each path, and its variance if its weights were standard normal."""
    means: dict[Key, Tensor] = {}
    variances: dict[Key, float] = {}
    for features, _ in ordered_batches(train, batch_size):
        share = len(features) / len(train)
        for index, block in enumerate(network.layers):
            outputs = block.outputs(features)
            for path, output in outputs.items():
                key = str(index + 1), path
                means[key] = means.get(key, torch.zeros(())) + share * output.mean(0)
                unit = cast(SpatialLayer, block.paths[path]).unit_variance(features)
                variances[key] = variances.get(key, 0) + share * unit.item()
            features = network.unit(block.mean(outputs))
    return means, variances


def _ablations(
    network: Network, means: Mapping[Key, Tensor], whole: "_Whole", batch_size: int
) -> dict[Key, dict[str, float]]:
    """What the test scores change by when one path's output is that of `means`; layers below it are computed once."""
    without: dict[Key, list[Tensor]] = {key: [] for key in means}
    for features, _ in ordered_batches(whole.test, batch_size):
        for index, block in enumerate(network.layers):
            outputs = block.outputs(features)
            for path, output in outputs.items():
                key = str(index + 1), path
                changed = network.unit(block.mean(outputs | {path: means[key].expand_as(output)}))
                without[key].append(network.rest(changed, index + 1))
            features = network.unit(block.mean(outputs))
    return {key: whole.change(own) for key, own in without.items()}


def _ablations_everywhere(
    network: Network, means: Mapping[Key, Tensor], whole: "_Whole", batch_size: int
) -> dict[Key, dict[str, float]]:
    """What the test scores change by when a path's output is that of `means` in every layer that has the path."""
    without: dict[str, list[Tensor]] = {path: [] for _, path in means}
    for images, _ in ordered_batches(whole.test, batch_size):
        for absent, own in without.items():
            features = images
            for index, block in enumerate(network.layers):
                outputs = block.outputs(features)
                if absent in outputs:
                    outputs[absent] = means[str(index + 1), absent].expand_as(outputs[absent])
                features = network.unit(block.mean(outputs))
            own.append(network.rest(features, len(network.blocks)))
    return {(EVERYWHERE, path): whole.change(own) for path, own in without.items()}


@dataclass(frozen=True)
class _Whole:
    """What the whole network scores on the test set."""

    likelihood: Likelihood
    test: Samples
    scores: Scores

    def change(self, outputs: list[Tensor]) -> dict[str, float]:
        """Scores of the batches' `outputs`, less those of the whole network."""
        own, measure = self.likelihood.scores(torch.cat(outputs), self.test.targets), self.likelihood.measure
        change = getattr(own, measure) - getattr(self.scores, measure)
        return {"nll_change": own.nll - self.scores.nll, f"{measure}_change": change}
