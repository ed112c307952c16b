"""What a run ascends: the protocol of objectives, as a base class that learns the weights alone."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ellarepro.curvature.likelihood import Likelihood
from ellarepro.data.dataset import Samples
from ellarepro.data.loading import Data
from ellarepro.evidence.prior import LayerwisePrior

Pause = Callable[[], None]
"""Called wherever the objective can be stopped; what it raises ends the run there, to be continued."""
Outcome = tuple[Tensor, Tensor]


class Objective:
    """log p(D|theta) + log p(theta), with everything but the weights theta fixed.

    The loop calls `forward` and `backward` in each step, `after_epoch` after each epoch, and saves `state_dict`. A run
    calls `check_memory` and `untrained` before the first epoch, and `report` after the last one.

    Args:
        prior: of the weights, of the model that it knows.
        data: the training set without augmentation.
        settings: of the objective, as its keys say; the base has none.
        generator: of what the objective draws, on the model's device.
        plateau: share of the loss of guessing. Before the first epoch, and after one with a higher loss, the network
            only guesses, and the prior has no part: its gradient is left out and nothing is learned beside the weights.
            Weights that no gradient of the data moves would otherwise fall to zero and stay. None: it always has.

    Attributes:
        replays: whether all steps do the same, so that they can be replayed as a CUDA graph.
        fallbacks: what happened to eigendecompositions and fits, counted by name.
    """

    replays = True

    def __init__(
        self,
        prior: LayerwisePrior,
        likelihood: Likelihood,
        data: Data,
        *,
        settings: Any = None,
        generator: torch.Generator | None = None,
        plateau: float | None = None,
    ):
        self.model, self.prior, self.likelihood, self.data = prior.model, prior, likelihood, data
        self.settings, self.generator = settings, generator
        self.plateau = math.inf
        if plateau is not None and isinstance(data, Samples):
            self.plateau = plateau * likelihood.guessing_loss(data.targets)
        self.fallbacks: Counter[str] = Counter()

    def forward(self, inputs: Tensor, targets: Tensor) -> Outcome:
        """The loss of a batch, mean over its samples (nats for classification), and the outputs `(B, K)`."""
        outputs = self.model(inputs)
        return self.likelihood.mean_loss(outputs, targets), outputs

    def backward(self, loss: Tensor, numbers: Sequence[float | Tensor]) -> None:
        """Give every parameter the gradient of the negative objective a datum; gradients are None before.

        Args:
            numbers: as `step_numbers` gives them, or scalars on the device, which a replayed step reads.
        """
        *decays, noise = numbers
        if isinstance(self.likelihood.precision(), Tensor):  # learned or not
            loss = loss * noise
        loss.backward()
        self.prior.add_gradients(decays)

    def step_numbers(self, last_loss: float, data_size: int) -> list[float]:
        """What of a step changes from step to step: delta / N of each tensor, and the likelihood's factor.

        Args:
            last_loss: of the last epoch; infinite before the first.
            data_size: N.
        """
        part = 1.0 if self.takes_part(last_loss) else 0.0
        return [*(part * decay for decay in self.prior.weight_decays(data_size)), self.factor]

    @property
    def factor(self) -> float:
        """The likelihood's factor on losses and curvature, as it is."""
        precision = self.likelihood.precision()
        return precision.item() if isinstance(precision, Tensor) else precision

    def takes_part(self, loss: float) -> bool:
        """Whether the prior has a part after an epoch with this `loss`."""
        return loss <= self.plateau

    def penalty(self) -> float:
        """1/2 sum_l delta_l |theta_l|^2, nats, summed."""
        return (self.prior.log_precision.detach().exp() * self.prior.squared_norms()).sum().item() / 2

    def after_epoch(self, epoch: int, epochs: int, loss: float, pause: Pause) -> dict[str, Any]:
        """Learn what is learned after `epoch` (from 1) of `epochs`; what is to be told of it, by name.

        Of what is told, the history keeps `neg_log_marglik_per_datum`, `prior_precision` and `hyperparameters`.

        Raises:
            RunFailure: a curvature that is not finite.
        """
        return {}

    def fits(self, epochs: int) -> int:
        """How many fits of a curvature a run of so many epochs takes."""
        return 0

    def check_memory(self) -> str | None:
        """What fits will take, as a line; None where there is nothing to say.

        Raises:
            UserError: more than is free.
        """
        return None

    def untrained(self, seed: int) -> dict[str, float]:
        """Effective numbers of parameters by tensor at weights as they are; empty where they have no meaning."""
        return {}

    def report(self, test: Samples, generator: torch.Generator, pause: Pause) -> dict[str, Any]:
        """What the result says beside the scores: fields of `RunResult` by name."""
        return {"neg_log_marglik_per_datum": None, "effective_parameters": {}}

    @property
    def doing(self) -> str | None:
        """What goes on, in words; None while nothing of the objective's own does."""
        return None

    def state_dict(self) -> dict[str, Any]:
        """All that continuing needs, as tensors and plain values."""
        return {
            "log_precision": self.prior.log_precision.detach(),
            "hyperparameters": [value.detach() for value in self.likelihood.hyperparameters()],
            "fallbacks": dict(self.fallbacks),
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state`, as `state_dict` gave it."""
        self.prior.log_precision.copy_(state["log_precision"])
        for value, kept in zip(self.likelihood.hyperparameters(), state["hyperparameters"], strict=True):
            value.copy_(kept)
        self.fallbacks = Counter(state["fallbacks"])
