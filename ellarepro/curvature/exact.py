"""The exact generalised Gauss-Newton from automatic Jacobians: the oracles, for small networks or few data only."""

from typing import Any

import torch
from torch import Tensor, nn

from ellarepro.curvature.columns import LambdaSquareRoot, SignedColumns
from ellarepro.curvature.hooks import evaluation_mode
from ellarepro.curvature.likelihood import Classification, Likelihood
from ellarepro.curvature.memory import Forecast, out_of_memory
from ellarepro.curvature.spectra import FullCurvature

FULL_LIMIT = 6000
"""Parameters up to which `structure=full` is accepted: a float64 matrix of 0.3 GB, taken apart at every hyper-step."""


TOGETHER = 8
"""Data whose Jacobians are taken at once: every row goes back through all of them, so that cost is quadratic in it."""
ROWS_TOGETHER = 32
"""Data whose rows are: each goes back through its own datum alone."""


def jacobians(model: nn.Module, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Jacobians `(B, K, P)` of the logits in the trainable parameters, in their order, and the logits `(B, K)`.

    The model is in evaluation mode meanwhile. What `torch.func` has no answer for, a custom `autograd.Function` or a
    checkpoint say, is passed back through row by row.
    """
    found = []
    with evaluation_mode(model), torch.enable_grad():
        for part in inputs.split(TOGETHER):
            try:
                found.append(_rows_together(model, part))
            except RuntimeError as error:
                if out_of_memory(error):
                    raise
                found.extend(_rows_one_by_one(model, datum) for datum in part.split(1))
    rows, logits = zip(*found, strict=True)
    return torch.cat(rows), torch.cat(logits)


def _rows_together(model: nn.Module, inputs: Tensor) -> tuple[Tensor, Tensor]:
    parameters = trainable(model)

    def logits_of(values: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        logits = torch.func.functional_call(model, values, (inputs,))
        return logits, logits

    by_name, logits = torch.func.jacrev(logits_of, has_aux=True)(parameters)
    return torch.cat([by_name[name].flatten(2) for name in parameters], dim=2), logits


def _rows_one_by_one(model: nn.Module, datum: Tensor) -> tuple[Tensor, Tensor]:
    parameters = [p for p in model.parameters() if p.requires_grad]
    logits = model(datum)
    rows = []
    for entry in logits[0]:
        gradients = torch.autograd.grad(entry, parameters, retain_graph=True, allow_unused=True, materialize_grads=True)
        rows.append(torch.cat([gradient.flatten() for gradient in gradients]))
    return torch.stack(rows)[None], logits.detach()


def trainable(model: nn.Module) -> dict[str, Tensor]:
    """The tensors that are trained, by name, detached."""
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


def exact_ggn(model: nn.Module, inputs: Tensor, likelihood: Likelihood | None = None) -> Tensor:
    """H = sum over n of J_n^T Lambda_n J_n, `(P, P)`, float64, in the order of `model.parameters()` (Section 5).

    Lambda is that of softmax cross-entropy, or of another `likelihood`, with noise of precision one.
    """
    return _product(*jacobians(model, inputs), likelihood or Classification())


def _product(jacobian: Tensor, outputs: Tensor, likelihood: Likelihood) -> Tensor:
    # In float32 the product has eigenvalues below zero, which small precisions do not outweigh.
    precise = jacobian.double()
    return torch.einsum("nkp,nkl,nlq->pq", precise, likelihood.hessian(outputs.double()), precise)


class FullAccumulator:
    """The exact matrix of a small network, gathered batch by batch, whatever its layers are; see `gather.Accumulator`.

    Raises:
        ValueError: a network of more than `FULL_LIMIT` parameters.
    """

    def __init__(self, model: nn.Module, likelihood: Likelihood | None = None):
        self.model, self.likelihood = model, likelihood or Classification()
        self.sizes = [p.numel() for p in model.parameters() if p.requires_grad]
        if sum(self.sizes) > FULL_LIMIT:
            raise ValueError(
                f"structure=full holds a dense matrix and is for networks of up to {FULL_LIMIT} parameters, "
                f"got {sum(self.sizes)}; take kron, kron_blockwise or diag, or a smaller alpha"
            )
        self.matrix: Tensor | None = None
        self.gathered = 0

    def update(self, inputs: Tensor, weights: Tensor | None = None) -> Tensor:
        """Add a batch of `inputs (B, ...)`, each `weights (B,)` times; returns its outputs `(B, K)`, detached."""
        jacobian, outputs = (found.detach() for found in jacobians(self.model, inputs))
        self.likelihood.check_outputs(outputs, len(inputs))
        roots = jacobian if weights is None else jacobian * weights.to(jacobian).sqrt()[:, None, None]
        part = _product(roots, outputs, self.likelihood)
        self.matrix = part if self.matrix is None else self.matrix.add_(part)
        self.gathered += len(inputs)
        return outputs

    def curvature(self, data_size: int) -> FullCurvature:
        """H of `data_size` data, from those gathered, scaled up where they are fewer."""
        if self.matrix is None:
            raise ValueError("curvature() before any update(): there is no curvature yet")
        return FullCurvature(self.matrix * (data_size / self.gathered), self.sizes)

    def state_dict(self) -> dict[str, Any]:
        """What was gathered so far."""
        return {"gathered": self.gathered, "matrix": self.matrix}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Go on from `state`, as `state_dict` gave it, on `device`."""
        self.gathered = state["gathered"]
        self.matrix = None if state["matrix"] is None else state["matrix"].to(device, copy=True)

    def forecast(self, inputs: Tensor) -> Forecast:
        """The float64 matrix is all that stays, and a copy is taken apart."""
        size = 8 * sum(self.sizes) ** 2
        return Forecast({"the full matrix": size}, workspace=size)


def ggn_rows(model: nn.Module, inputs: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """A with A^T A = H, `(N (K-1), P)`: L_n^T J_n of each of `inputs (N, ...)`, L_n the square root of Lambda_n.

    With a `generator`, one sampled pass a datum in place of all K - 1: `(N, P)`, and A^T A is unbiased for H.
    """
    parameters = trainable(model)

    def along(values: dict[str, Tensor], datum: Tensor, column: Tensor) -> Tensor:
        return torch.func.functional_call(model, values, (datum[None],))[0] @ column

    one_a_datum = torch.func.vmap(torch.func.grad(along), in_dims=(None, 0, 0))
    found = []
    with evaluation_mode(model):
        for part in inputs.split(ROWS_TOGETHER):
            logits = model(part).detach()
            root = LambdaSquareRoot(logits, tolerance=0) if generator is None else SignedColumns(logits, 1, generator)
            for index in range(int(root.passes_needed.max())):
                rows = one_a_datum(parameters, part, root.column(index).to(logits))
                found.append(torch.cat([rows[name].flatten(1) for name in parameters], dim=1))
    return torch.cat(found)
