"""The curvature of `nn.Embedding`: a matrix that meets rows with a single one, which are never written out."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ellarepro.curvature.rule import CurvatureRule, register


@register(nn.Embedding)
class EmbeddingRule(CurvatureRule):
    """KFAC of a matrix `(V, E)` on one-hot rows: the input factor `(V, V)` is diagonal, kept as V groups of one entry.

    Raises:
        ValueError: `max_norm`, by which the forward pass changes the weights; `scale_grad_by_freq` or `sparse`, by
            which gradients are other ones, or of another kind.
    """

    group_axis = 0
    input_first = True

    def __init__(self, layer: nn.Embedding):
        super().__init__(layer)
        if layer.max_norm is not None:
            raise ValueError("nn.Embedding must have max_norm=None: otherwise its forward pass changes the weights")
        if layer.scale_grad_by_freq:
            raise ValueError("nn.Embedding must have scale_grad_by_freq=False: otherwise its gradients are rescaled")
        if layer.sparse:
            raise ValueError("nn.Embedding must have sparse=False: the prior gives every row a gradient")

    def input_rows(self, inputs: Tensor) -> Tensor:
        """The definition, which only oracles use: `(V, N, T, 1)`."""
        words = torch.arange(self.layer.num_embeddings, device=inputs.device)
        seen = (inputs.reshape(len(inputs), -1, 1) == words) & (words != self._padding())
        return seen.to(self.layer.weight.dtype).permute(2, 0, 1).unsqueeze(3)

    def kept_rows(self, inputs: Tensor) -> None:
        return None

    def input_factor(self, inputs: Tensor) -> Tensor:
        return self.weighted_input_factor(inputs, torch.ones_like(inputs)) / inputs[0].numel()

    def counts_live_positions(self, inputs: Tensor) -> bool:
        return True

    def weighted_input_factor(self, inputs: Tensor, weights: Tensor) -> Tensor:
        """`(V, 1, 1)`: how often each word is seen, each place counted by its weight."""
        kept = weights.flatten().to(self.layer.weight) * (inputs.flatten() != self._padding())
        return self._words().index_add_(0, inputs.flatten(), kept).view(-1, 1, 1)

    def output_rows(self, gradients: Tensor) -> Tensor:
        return gradients.reshape(1, len(gradients), -1, gradients.shape[-1])

    def weight_gradients(self, inputs: Tensor, gradients: Tensor) -> Tensor:
        rows = zip(inputs.reshape(len(inputs), -1), self._without_padding(inputs, gradients), strict=True)
        return torch.stack([self._matrix().index_add_(0, words, row).flatten() for words, row in rows])

    def squared_weight_gradients(self, inputs: Tensor) -> Callable[[Tensor], Tensor]:
        words = inputs.reshape(len(inputs), -1)
        same = (words[:, :, None] == words[:, None, :]).to(self.layer.weight.dtype)
        # A word that a sample has c times is met c times with the same sum of gradients, and counts once.
        once = same.sum(2, keepdim=True).reciprocal()

        def summed(gradients: Tensor) -> Tensor:
            squares = (same @ self._without_padding(inputs, gradients)).square() * once
            return self._matrix().index_add_(0, words.flatten(), squares.flatten(0, 1)).flatten()

        return summed

    def _without_padding(self, inputs: Tensor, gradients: Tensor) -> Tensor:
        """Gradients `(N, T, E)`; padding has none."""
        return self.output_rows(gradients)[0] * (inputs.reshape(len(inputs), -1) != self._padding()).unsqueeze(2)

    def _words(self) -> Tensor:
        return self.layer.weight.detach().new_zeros(len(self.layer.weight))

    def _matrix(self) -> Tensor:
        return torch.zeros_like(self.layer.weight, requires_grad=False)

    def _padding(self) -> int:
        return -1 if self.layer.padding_idx is None else self.layer.padding_idx
