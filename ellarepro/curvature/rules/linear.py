"""The curvature of `nn.Linear` on any number of shared positions."""

from torch import Tensor, nn

from ellarepro.curvature.rule import CurvatureRule, register


@register(nn.Linear)
class LinearRule(CurvatureRule):
    """KFAC of a matrix, `(O, O)` kron `(F, F)`, on `(B, F)` or on `(B, ..., F)`, with shared positions between.

    Positions are those of a convolution: the input factor is the mean over those with a gradient, the output factor
    their sum.
    """

    bias_is_output = True

    def input_rows(self, inputs: Tensor) -> Tensor:
        return _rows(inputs)

    def counts_live_positions(self, inputs: Tensor) -> bool:
        return inputs.ndim > 2

    def output_rows(self, gradients: Tensor) -> Tensor:
        return _rows(gradients)

    def bias_rows(self, gradients: Tensor) -> Tensor:
        return gradients if gradients.ndim == 2 else gradients.flatten(1, -2).sum(1)


def _rows(features: Tensor) -> Tensor:
    """`(1, N, F)` from `(N, F)`, `(1, N, T, F)` from `(N, ..., F)`."""
    return (features if features.ndim == 2 else features.flatten(1, -2))[None]
