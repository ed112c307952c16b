"""Shares of the paths of a layer in what it learned."""

from collections.abc import Mapping


def relative_effective_parameters(
    effective: Mapping[str, float], path_weights: Mapping[str, Mapping[str, list[str]]]
) -> dict[str, dict[str, float]]:
    """Share of each path in the effective number of weights of its layer, in percent: {layer: {path: percent}}.

    Args:
        effective: effective number of parameters of each tensor; empty gives an empty result.
        path_weights: as `Network.path_weights` gives them.
    """
    shares = {}
    for layer, paths in path_weights.items() if effective else ():
        sums = effective_by_path(effective, paths)
        total = sum(sums.values()) or 1.0
        shares[layer] = {path: 100 * value / total for path, value in sums.items()}
    return shares


def effective_by_path(effective: Mapping[str, float], paths: Mapping[str, list[str]]) -> dict[str, float]:
    """Effective number of weights of each path of a layer: {path: number}, given {path: names of its tensors}."""
    return {path: sum(effective[name] for name in names) for path, names in paths.items()}
