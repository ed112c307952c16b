"""The curvature of `nn.Embedding`: a matrix that meets rows with a single one."""

import torch
from torch import Tensor, nn

from ellarepro.curvature.rule import CurvatureRule, register


@register(nn.Embedding)
class EmbeddingRule(CurvatureRule):
    """KFAC of a matrix `(V, E)` on one-hot rows: the input factor `(V, V)` is diagonal, kept as V groups of one entry.

    Raises:
        ValueError: `max_norm`, by which the forward pass changes the weights.
    """

    group_axis = 0
    input_first = True

    def __init__(self, layer: nn.Embedding):
        super().__init__(layer)
        if layer.max_norm is not None:
            raise ValueError("nn.Embedding is covered for max_norm=None: with it the forward pass changes the weights")

    def input_rows(self, inputs: Tensor) -> Tensor:
        words = torch.arange(self.layer.num_embeddings, device=inputs.device)
        indices = inputs.reshape(len(inputs), -1, 1)
        # Padding has no gradient.
        seen = (indices == words) & (words != self._padding())
        return seen.to(self.layer.weight.dtype).permute(2, 0, 1).unsqueeze(3)

    def kept_rows(self, inputs: Tensor) -> None:
        return None

    def input_factor(self, inputs: Tensor) -> Tensor:
        indices, weight = inputs.flatten(), self.layer.weight.detach()
        counts = weight.new_zeros(len(weight)).index_add_(0, indices, weight.new_ones(len(indices)))
        if self.layer.padding_idx is not None:
            counts[self.layer.padding_idx] = 0
        return counts.view(-1, 1, 1) / inputs[0].numel()

    def output_rows(self, gradients: Tensor) -> Tensor:
        return gradients.reshape(1, len(gradients), -1, gradients.shape[-1])

    def _padding(self) -> int:
        return -1 if self.layer.padding_idx is None else self.layer.padding_idx
