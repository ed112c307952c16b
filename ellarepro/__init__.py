"""Reproduction of *Learning Layer-wise Equivariances Automatically using Gradients* (NeurIPS 2023)."""

__version__ = "0.1.0"
