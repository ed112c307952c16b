"""The exact generalised Gauss-Newton from automatic Jacobians: the oracle, for small networks only."""

import torch
from torch import Tensor, nn

from ellarepro.curvature.hooks import evaluation_mode


def jacobians(model: nn.Module, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Jacobians `(B, K, P)` of the logits in the trainable parameters, in their order, and the logits `(B, K)`.

    The model is in evaluation mode meanwhile.
    """
    parameters = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}

    def logits_of(values: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        logits = torch.func.functional_call(model, values, (inputs,))
        return logits, logits

    with evaluation_mode(model):
        by_name, logits = torch.func.jacrev(logits_of, has_aux=True)(parameters)
    return torch.cat([by_name[name].flatten(2) for name in parameters], dim=2), logits


def softmax_hessian(logits: Tensor) -> Tensor:
    """Lambda = diag(p) - p p^T, `(B, K, K)`, of the negative log likelihood in the logits `(B, K)`."""
    p = logits.softmax(-1)
    return torch.diag_embed(p) - p[:, :, None] * p[:, None, :]


def exact_ggn(model: nn.Module, inputs: Tensor) -> Tensor:
    """H = sum over n of J_n^T Lambda_n J_n, `(P, P)`, in the order of `model.parameters()` (Section 5)."""
    jacobian, logits = jacobians(model, inputs)
    return torch.einsum("nkp,nkl,nlq->pq", jacobian, softmax_hessian(logits), jacobian)
