"""The kernel form of the evidence: log|H + D| - log|D| = log|I + R D^-1 R^T|, with R^T R = H (Immer et al., ICML 2023).

As many rows as N (K - 1), however large the network: exact, with the correlations of all tensors. R D^-1 R^T is the sum
over tensors of their inner products over their precisions, so that hyper-steps need the network no more.

Batches that do not meet bound it: log|I + K| is at most the sum over batches of log|I + K_B| (Fischer's inequality).
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from ellarepro.curvature.accumulators import batch_like
from ellarepro.curvature.eigen import CurvatureError
from ellarepro.curvature.ggn import GGN
from ellarepro.curvature.likelihood import Likelihood
from ellarepro.curvature.memory import Forecast
from ellarepro.curvature.rows import DenseRows, FactoredRows, Rows, RowStructure
from ellarepro.curvature.structures import Block

Chunk = dict[str, Rows]
"""Some samples' rows of each tensor, by its name, in the order of `model.parameters()`."""


class RowAccumulator(GGN):
    """Rows of a root of H, batch by batch; arguments and errors as of `GGN`."""

    structures: ClassVar = {"rows": RowStructure}

    def __init__(
        self,
        model: nn.Module,
        tolerance: float = 0.0,
        passes: int | None = None,
        generator: torch.Generator | None = None,
        likelihood: Likelihood | None = None,
    ):
        super().__init__(model, "rows", tolerance, passes, generator, likelihood)

    def chunks(self, inputs: Tensor, weights: Tensor | None = None) -> tuple[list[Chunk], Tensor]:
        """The rows of `inputs (B, ...)`, each `weights (B,)` times, and the outputs `(B, K)`.

        One chunk; or several, where some samples need more class passes than others.
        """
        outputs = super().update(inputs, weights)
        by_layer = {name: cast(RowStructure, part).take() for name, part in self.parts.items()}
        names = [name for name, p in self.model.named_parameters() if p.requires_grad]
        found = [
            {f"{layer}.{tensor}" if layer else tensor: rows for layer, own in pieces for tensor, rows in own.items()}
            for pieces in zip(*([(layer, own) for own in taken] for layer, taken in by_layer.items()), strict=True)
        ]
        return [{name: chunk[name] for name in names} for chunk in found], outputs

    def rows_of(self, inputs: Tensor, count: int) -> dict[str, dict[str, Rows]]:
        """All rows of `count` data like `inputs`, without storage, by layer and tensor."""
        found = {}
        for name, part, layer_inputs, output, passes in self.layers_without_storage(inputs):
            part.keep_inputs(batch_like(layer_inputs, count))
            for _ in range(passes):
                part.add_gradients(batch_like(output, count))
            (found[name],) = cast(RowStructure, part).take()
        return found


class KernelAccumulator(RowAccumulator):
    """Inner products of the rows of all data, or of each batch by itself, tensor by tensor; see `gather.Accumulator`.

    Args:
        batch_size: None: rows of all batches meet. Else only those of a batch do, of so many data at most: the
            log-determinant is the sum over batches, at least that of all data; of fewer data than all it is scaled up,
            not their curvature.
        others: those of `RowAccumulator` after the model.
    """

    def __init__(self, model: nn.Module, batch_size: int | None = None, *others: Any, **options: Any):
        super().__init__(model, *others, **options)
        self.batch_size = batch_size
        self.kept: list[Chunk] = []
        self.products: list[Tensor] = []

    def update(self, inputs: Tensor, weights: Tensor | None = None) -> Tensor:
        chunks, outputs = self.chunks(inputs, weights)
        if self.batch_size is None:
            self.kept += chunks
        else:
            self.products.append(all_products(chunks))
        return outputs

    def curvature(self, data_size: int) -> "KernelCurvature":  # type: ignore[override]
        """H of `data_size` data, from those gathered, scaled up where they are fewer.

        Raises:
            CurvatureError: the rows are not finite.
        """
        if not self.gathered:
            raise ValueError("curvature() before any update(): there is no curvature yet")
        scale = data_size / self.gathered
        if self.batch_size is None:
            return KernelCurvature([all_products(self.kept)], scale=scale)
        return KernelCurvature(self.products, weight=scale)

    def state_dict(self) -> dict[str, Any]:
        kept = [{name: vars(rows) for name, rows in chunk.items()} for chunk in self.kept]
        return {"gathered": self.gathered, "kept": kept, "products": list(self.products)}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        self.gathered = state["gathered"]
        self.products = [products.to(device) for products in state["products"]]
        self.kept = [{name: _rows(**own).to(device) for name, own in chunk.items()} for chunk in state["kept"]]

    def forecast(self, inputs: Tensor) -> Forecast:
        """Each layer's rows while they are needed, and its products; the workspace is the kernel, its root, inverse."""
        together = min(self.batch_size or len(inputs), len(inputs))
        found = self.rows_of(inputs, together)
        width = max(len(rows) for own in found.values() for rows in own.values())
        products = 8 * width**2 * len(inputs) // together
        sizes = {name: sum(rows.nbytes + products for rows in own.values()) for name, own in found.items()}
        return Forecast(sizes, workspace=3 * 8 * width**2, remedy="lower objective.fit_size, or take passes=1")


def _rows(**tensors: Tensor) -> Rows:
    return DenseRows(**tensors) if "rows" in tensors else FactoredRows(**tensors)


def all_products(chunks: Sequence[Chunk]) -> Tensor:
    """Inner products of all rows in `chunks`, tensor by tensor: `(L, M, M)`, float64."""
    sizes = [len(next(iter(chunk.values()))) for chunk in chunks]
    places = [slice(end - size, end) for size, end in zip(sizes, accumulate(sizes), strict=True)]
    total: Any = None
    for index, name in enumerate(chunks[0]):
        for row, (one, here) in enumerate(zip(chunks, places, strict=True)):
            for other, there in zip(chunks[: row + 1], places, strict=False):
                products = one[name].products(cast(Any, other[name]))
                if total is None:
                    total = products.new_empty(len(chunks[0]), sum(sizes), sum(sizes))
                total[index, here, there] = products
                total[index, there, here] = products.mT
    return total


class KernelCurvature:
    """H = R^T R by the inner products of its rows, exact; or batches of rows that do not meet.

    Args:
        products: R_l R_l^T of each tensor, `(L, M, M)`, float64, of each batch.
        scale: on H.
        weight: on the sum over batches of log-determinants.
    """

    blocks: dict[str, Block] | None = None

    def __init__(self, products: Sequence[Tensor], scale: float = 1.0, weight: float = 1.0):
        self.products, self.scale, self.weight = products, scale, weight

    def log_det_ratio(self, precisions: Tensor) -> Tensor:
        """The sum over batches of log |I + R D^-1 R^T| with D = diag(delta), one delta a tensor `(L,)`.

        Raises:
            CurvatureError: rows that are not finite, or so large beside delta that rounding makes the sum indefinite.
        """
        total = sum(_LogDetRatio.apply(precisions / self.scale, products) for products in self.products)
        return self.weight * total


class _LogDetRatio(torch.autograd.Function):
    """log|I + sum_l K_l / delta_l|, and its derivatives, -tr((I + K)^-1 K_l) / delta_l^2, in the same pass."""

    @staticmethod
    def forward(ctx, precisions: Tensor, products: Tensor) -> Tensor:
        flat = products.flatten(1)
        inverse = precisions.to(flat).reciprocal()
        kernel = (inverse @ flat).view_as(products[0])
        root = cholesky_of_identity_plus(kernel)
        if ctx.needs_input_grad[0]:
            traces = flat @ torch.cholesky_inverse(root).flatten()
            ctx.save_for_backward((-traces * inverse.square()).to(precisions))
        return 2 * root.diagonal().log().sum().to(precisions)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.saved_tensors[0], None


def cholesky_of_identity_plus(kernel: Tensor) -> Tensor:
    """The lower root of I + K `(M, M)`; K is overwritten.

    Raises:
        CurvatureError: K is not finite, or so large that rounding makes I + K indefinite.
    """
    kernel.diagonal().add_(1)
    root, info = torch.linalg.cholesky_ex(kernel)
    if info.item() or not torch.isfinite(root.diagonal()).all():
        raise CurvatureError(
            "the kernel of the curvature is not finite, or not positive definite beside the identity: the network's "
            "outputs or gradients have overflowed, or the precisions are too small; lower the learning rate"
        )
    return root
