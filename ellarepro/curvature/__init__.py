"""Kronecker-factored generalised Gauss-Newton curvature of every layer of the project.

`EllaGGN` and `BlockKronLaplace` are imported on first use: layers import `curvature.rule`, and must not pull in
laplace-torch by doing so.
"""

from importlib import import_module

_HOMES = {"EllaGGN": "interop.backend", "BlockKronLaplace": "interop.backend"}

__all__ = ["BlockKronLaplace", "EllaGGN"]


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
