"""objective=lila: precisions and the ranges of an affine invariance, learned by the marginal likelihood.

Immer, van der Ouderaa et al. (NeurIPS 2022). The network averages over transformed copies of each image. After each fit
the precisions take their hyper-steps, and the ranges one step of Adam along the gradient of the evidence. Where a ReLU
switches or a polyphase jumps as a range changes, the evidence jumps and its gradient does not say so: both are refused.
"""

from typing import Any

import torch

from ellarepro.errors import UserError
from ellarepro.evidence.adjoint import evidence_gradient
from ellarepro.evidence.marglik import Fit, MarginalLikelihood
from ellarepro.layers.paths import PathMean
from ellarepro.layers.spatial import SpatialLayer
from ellarepro.objectives.laplace import Laplace
from ellarepro.settings.parts import TRANSFORMATIONS, LilaSettings
from ellarepro.symmetry.affine import Affine, Averaging


class LearnsRanges(Laplace):
    """What any Laplace objective does to learn ranges, once it has its `averaging` and a `range_optimiser`."""

    averaging: Averaging
    range_optimiser: torch.optim.Optimizer

    def learn_ranges_of(self, averaging: Averaging, lr: float) -> None:
        """From now on the ranges of `averaging` are learned, by steps of Adam at the rate `lr`."""
        self.averaging = averaging
        self.range_optimiser = torch.optim.Adam([averaging.affine.eta], lr=lr)

    def learned_from(self, fit: Fit, marglik: MarginalLikelihood) -> dict[str, Any]:
        """One step on the ranges, at the precisions that the hyper-steps ended with."""
        affine = self.averaging.affine
        eta = affine.eta.requires_grad_()
        try:
            (gradient,) = evidence_gradient(fit, marglik, self.prior.log_precision, [eta])
        finally:
            eta.requires_grad_(False)
        eta.grad = -gradient * affine.learned / marglik.data_size
        self.range_optimiser.step()
        return {"hyperparameters": {f"range_{name}": value for name, value in affine.ranges().items()}}

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"range_optimiser": self.range_optimiser.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.range_optimiser.load_state_dict(state["range_optimiser"])


class Lila(LearnsRanges):
    """Laplace with an affine invariance of the network's input."""

    settings: LilaSettings

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        refuse_jumps(self.model)
        settings = self.settings
        affine = Affine(settings.start, TRANSFORMATIONS[settings.transformations], settings.copies)
        self.learn_ranges_of(
            Averaging(self.model, affine.to(self.prior.parameters[0]), self.generator), settings.range_lr
        )


def refuse_jumps(model: torch.nn.Module) -> None:
    """Refuse a network in which a phase is chosen by its norm, or units have a kink.

    Raises:
        UserError: it names what goes.
    """
    for name, module in model.named_modules():
        chooses = isinstance(module, SpatialLayer) and module.subsamples and module.equivariant_to
        if chooses or (isinstance(module, PathMean) and module.subsampled and module.adaptive):
            what = "keeps the largest of four phases"
        elif isinstance(module, torch.nn.ReLU):
            what = "has a kink at zero"
        else:
            continue
        raise UserError(
            f"objective=lila: {name} {what}, so that the evidence jumps as a range changes, and no gradient sees "
            "that; take smooth=true"
        )
