"""Reproduction of *Learning Layer-wise Equivariances Automatically using Gradients* (NeurIPS 2023).

For a network of one's own: `LayerwiseLaplace`, its `FitSettings`, the likelihoods `Classification`, `Bernoulli` and
`Regression`, and the invariance `Affine`. For a finished run: `load_run`, which gives network, prior, data and result
back. All are imported on first use: a command must not wait for PyTorch to check its configuration.
"""

from importlib import import_module

__version__ = "0.1.0"

_HOMES = {
    "Affine": "symmetry.affine",
    "LayerwiseLaplace": "layerwise",
    "FitSettings": "settings.parts",
    "LaplaceSettings": "settings.parts",
    "Bernoulli": "curvature.likelihoods",
    "Classification": "curvature.likelihood",
    "Regression": "curvature.likelihood",
    "NaturalGradient": "training.natural_gradient",
    "load_run": "runs.trained",
}

__all__ = [
    "Affine",
    "Bernoulli",
    "Classification",
    "FitSettings",
    "LaplaceSettings",
    "LayerwiseLaplace",
    "NaturalGradient",
    "Regression",
    "load_run",
]


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
