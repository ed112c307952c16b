"""What the paths of a layer have of what it learned; biases, lengthscales and the head are left out."""

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean

from ellarepro.layers.tensors import HEAD, WEIGHT, TensorInfo, by_path

ByPath = dict[str, dict[str, float]]
"""{layer: {path: number}}"""


def relative_effective_parameters(effective: Mapping[str, float], tensors: Mapping[str, TensorInfo]) -> ByPath:
    """Return the paper's relative effective number of parameters (Table 3, Figure 3), in percent of the layer.

    gamma_t / P_t of each weight tensor, effective over actual number, averaged over the weight tensors of a path (both
    factors of a factored one), as a share of the sum over the layer's paths. It favours paths with few weights.

    Args:
        effective: effective number of parameters gamma_t of each tensor; empty gives an empty result.
        tensors: what each tensor is.
    """
    used = _by_path(lambda names: fmean(effective[name] / tensors[name].size for name in names), effective, tensors)
    return _percent(used)


def effective_share(effective: Mapping[str, float], tensors: Mapping[str, TensorInfo]) -> ByPath:
    """Return each path's percentage of the layer's effective number of weights. It favours paths with many weights.

    Arguments as of `relative_effective_parameters`.
    """
    return _percent(effective_numbers(effective, tensors))


def boundaries(shares: Mapping[str, Mapping[str, float]], paths: Sequence[str]) -> list[tuple[str, float]]:
    """Return (bar, height) wherever two of `paths`, stacked in this order, meet in a bar of `shares`."""
    return [
        (bar, sum(own.get(path, 0.0) for path in paths[:count]))
        for bar, own in shares.items()
        for count in range(1, len(paths))
    ]


def has_choice(tensors: Mapping[str, TensorInfo]) -> bool:
    """Return whether any layer has several paths to share among."""
    paths = [layer for layer, _ in by_path(tensors, WEIGHT) if layer != HEAD]
    return len(set(paths)) < len(paths)


def effective_numbers(effective: Mapping[str, float], tensors: Mapping[str, TensorInfo]) -> ByPath:
    """Return each path's effective number of weights, the sum of gamma_t over its weight tensors.

    Arguments as of `relative_effective_parameters`.
    """
    return _by_path(lambda names: sum(effective[name] for name in names), effective, tensors)


def _by_path(measure: Callable[[list[str]], float], effective: Mapping, tensors: Mapping[str, TensorInfo]) -> ByPath:
    """`measure` of each path's weight tensors, given by name."""
    found: ByPath = {}
    for (layer, path), names in by_path(tensors, WEIGHT).items() if effective else ():
        if layer != HEAD:
            found.setdefault(layer, {})[path] = measure(names)
    return found


def _percent(numbers: ByPath) -> ByPath:
    # A layer of which nothing is left has no shares to give.
    totals = {layer: sum(paths.values()) or 1.0 for layer, paths in numbers.items()}
    return {layer: {path: 100 * n / totals[layer] for path, n in paths.items()} for layer, paths in numbers.items()}
