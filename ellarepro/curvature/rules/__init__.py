"""Curvature rules of PyTorch's own layers; importing the package registers them."""

from ellarepro.curvature.rules import convolution, embedding, linear, normalisation

__all__ = ["convolution", "embedding", "linear", "normalisation"]
