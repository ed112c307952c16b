"""objective=vi: variational inference with matrix-normal posteriors (Louizos and Welling, 2016).

    log p(D|delta) >= E_q log p(D|theta) - sum_l KL(q_l || N(0, 1/delta_l)),   q_l = N(M_l, S_l kron A_l)

The means are the network's weights, which the run's optimiser moves. The factors are moved by Adam, and the precisions
are set to their maximum, delta_l = d_l / (tr Sigma_l + |M_l|^2), after each epoch. Until the burn-in is over the
objective is MAP; the posterior then starts from the Laplace approximation, narrowed to a tenth of the weights' size.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.func import functional_call

from ellarepro.curvature.hooks import evaluation_mode
from ellarepro.curvature.likelihood import Classification
from ellarepro.curvature.scores import class_scores
from ellarepro.data.dataset import Samples
from ellarepro.data.loading import batches_of
from ellarepro.errors import UserError
from ellarepro.evidence.marglik import Fit
from ellarepro.evidence.matrix_normal import MatrixNormal, kl_divergence
from ellarepro.objectives.draws import Draws
from ellarepro.objectives.objective import Objective, Outcome, Pause
from ellarepro.settings.parts import VariationalSettings

SMALLEST_SQUARE = 1e-4
"""Mean square below which a tensor, of biases say, counts as having this one."""
WIDEST = 4096
"""Of a covariance factor: wider ones are not learned in a run of any length."""


def _narrow(p: Tensor) -> float:
    """The precision of a spread of at most a tenth of a tensor's root mean square, at which a posterior may start.

    At the prior's own spread no signal passes eight layers without normalisation, and the bound has no gradient.
    """
    return 100 / max(p.detach().square().mean().item(), SMALLEST_SQUARE)


class Variational(Objective):
    """The negative evidence lower bound a datum, by one draw of the weights for each batch.

    The draws of `every` batches are made at once, and after them the factors take a step by the mean of their
    gradients. Wide factors cost more than a step of the weights, and so are read once for many.

    Attributes:
        posteriors: q of each tensor by name; none until the burn-in is over.
    """

    settings: VariationalSettings
    replays = False

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self.posteriors: dict[str, MatrixNormal] = {}
        self._optimiser: torch.optim.Optimizer | None = None
        self._draws: Draws | None = None

    def forward(self, inputs: Tensor, targets: Tensor) -> Outcome:
        if not self.posteriors:
            return super().forward(inputs, targets)
        self._draws = self._draws or Draws.ahead(self.posteriors, self.settings.every, self.generator)
        outputs = functional_call(self.model, self._around_means(self._draws.next()), (inputs,))
        return self.likelihood.mean_loss(outputs, targets), outputs

    def _around_means(self, deviations: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: p + deviations[name] for name, p in zip(self.prior.names, self.prior.parameters, strict=True)}

    def drawn_weights(self, generator: torch.Generator | None) -> dict[str, Tensor]:
        """One draw of all weights by name."""
        return self._around_means({name: q.deviation(generator) for name, q in self.posteriors.items()})

    def backward(self, loss: Tensor, numbers: Sequence[float | Tensor]) -> None:
        """As the base, whose decays are the means' part of the KL; once its draws are used, the factors take a step."""
        super().backward(loss, numbers)
        if self._draws is None or self._draws.left or self._optimiser is None:
            return
        self._optimiser.zero_grad(set_to_none=True)
        self._draws.backward(self._factors_part(numbers))
        self._optimiser.step()
        self._draws = None

    def _factors_part(self, numbers: Sequence[float | Tensor]) -> Tensor:
        """The KL's part in the factors, a datum; zero where the prior has no part, as volume alone has no bound."""
        pairs = zip(numbers[:-1], self.posteriors.values(), strict=True)
        parts = [(decay * q.trace() - q.log_det() / self._data_size) / 2 for decay, q in pairs if decay]
        return sum(parts, torch.zeros((), device=self.prior.parameters[0].device))

    @property
    def _data_size(self) -> int:
        return len(cast(Samples, self.data))

    def after_epoch(self, epoch: int, epochs: int, loss: float, pause: Pause) -> dict[str, Any]:
        if not self.takes_part(loss) or epoch < self.settings.burn_in:
            return {}
        width = cast(Samples, self.data).targets[0].numel()
        drawn = bool(self.posteriors)
        if not drawn:
            self._start(Fit(self.model, self.prior, self.data, self.settings.fit, self.generator, self.likelihood))
        self.likelihood.fit_noise(loss, width)
        self._set_precisions()
        told: dict[str, Any] = {"effective_parameters": self.effective_parameters()}
        if drawn:  # by the draws of the epoch's own steps, while the means moved
            fit = self.likelihood.log_likelihood(loss * self._data_size, self._data_size, width)
            told["neg_log_marglik_per_datum"] = float(self.kl() - fit) / self._data_size
        return told | {"prior_precision": self.prior.precisions()}

    def _start(self, fit: Fit) -> None:
        blocks, deltas = fit.whole().curvature.blocks or {}, self.prior.precisions()
        widest = max((part.shape[-1] for block in blocks.values() for part in block.factors), default=0)
        if widest > WIDEST:
            raise UserError(
                f"objective=vi: a covariance factor of {widest} x {widest} is too wide to be learned, {WIDEST} is the "
                "most; take a lower alpha, or layer=f_fc for fc"
            )
        self._take(
            {
                n: MatrixNormal.of_block(p, blocks[n], max(deltas[n], _narrow(p)), self.factor)
                for n, p in zip(self.prior.names, self.prior.parameters, strict=True)
            }
        )

    def _take(self, posteriors: dict[str, MatrixNormal]) -> None:
        self.posteriors = posteriors
        groups: list[dict[str, Any]] = [{"params": [scale for q in posteriors.values() for scale in q.log_scales]}]
        changes = [change for q in posteriors.values() for change in q.changes if len(change)]
        # A row of the change has as many entries as the factor is wide, and a step that is noise moves all of them.
        groups += [{"params": [change], "lr": self.settings.lr / change.shape[-1] ** 0.5} for change in changes]
        self._optimiser = torch.optim.Adam(groups, lr=self.settings.lr, fused=True)

    @torch.no_grad()
    def _set_precisions(self) -> None:
        """delta_l = d_l / (tr Sigma_l + |M_l|^2), the maximum of the bound; tensors that share one count as one."""
        named = list(zip(self.prior.names, self.prior.parameters, strict=True))
        moments = torch.stack([(self.posteriors[n].trace() + p.square().sum()).double().cpu() for n, p in named])
        sizes = torch.tensor([p.numel() for _, p in named], dtype=torch.float64)
        best = (self.prior.shared.mv(sizes) / self.prior.shared.mv(moments)).log()
        learned = self.prior.shared.any(1)
        self.prior.log_precision[learned] = best[learned]

    @torch.no_grad()
    def kl(self) -> Tensor:
        """KL of the posterior from the prior, nats, summed over tensors."""
        named = zip(self.prior.names, self.prior.parameters, self.prior.log_precision, strict=True)
        parts = [kl_divergence(self.posteriors[n], p, eta.to(p)).double().cpu() for n, p, eta in named]
        return torch.stack(parts).sum()

    @torch.no_grad()
    def negative_elbos(self, drawn: Sequence[Mapping[str, Tensor]]) -> Tensor:
        """-log p(D|theta) + KL in nats, summed over the training set, at each of the `drawn` weights: `(S,)`.

        Their mean over draws of the posterior is minus the evidence lower bound.
        """
        fits = []
        for weights in drawn:
            total, size, width = 0.0, 0, 1
            for outputs, targets in self._outputs(weights, self.data):
                total += self.likelihood.losses(outputs, targets).double().sum().item()
                size, width = size + len(targets), outputs.shape[1]
            fits.append(self.likelihood.log_likelihood(total, size, width))
        return self.kl() - torch.stack(fits)

    def _outputs(self, weights: Mapping[str, Tensor], data: Any) -> Iterator[tuple[Tensor, Tensor]]:
        with evaluation_mode(self.model):
            for inputs, targets in batches_of(data, 500, self.prior.parameters[0].device):
                yield functional_call(self.model, dict(weights), (inputs,)), targets

    @torch.no_grad()
    def _sampled_scores(self, drawn: Sequence[Mapping[str, Tensor]], test: Samples) -> dict[str, float]:
        """Scores of the mean prediction of the networks of `drawn` weights; of classes alone."""
        if not isinstance(self.likelihood, Classification):
            return {}
        logs = [torch.cat([outputs for outputs, _ in self._outputs(weights, test)]).log_softmax(1) for weights in drawn]
        return class_scores(torch.stack(logs).logsumexp(0) - math.log(len(drawn)), test.targets).known()

    @torch.no_grad()
    def effective_parameters(self) -> dict[str, float]:
        """d_l - delta_l tr Sigma_l by tensor: what the posterior knows beyond the prior, as with Laplace."""
        deltas = self.prior.precisions()
        pairs = zip(self.prior.names, self.prior.parameters, strict=True)
        return {n: p.numel() - deltas[n] * self.posteriors[n].trace().item() for n, p in pairs}

    def report(self, test: Samples, generator: torch.Generator, pause: Pause) -> dict[str, Any]:
        """The bound and the mean prediction, by `draws` draws of the weights."""
        if not self.posteriors:
            return super().report(test, generator, pause)
        with torch.no_grad():
            drawn = [self.drawn_weights(self.generator) for _ in range(self.settings.draws)]
        bounds = self.negative_elbos(drawn) / self._data_size
        return {
            "neg_log_marglik_per_datum": bounds.mean().item(),
            "neg_log_marglik_error": (bounds.std() / len(bounds) ** 0.5).item() if len(bounds) > 1 else None,
            "sampled": self._sampled_scores(drawn, test) or None,
            "effective_parameters": self.effective_parameters(),
        }

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {
            "posteriors": {name: q.state_dict() | {"axis": q.group_axis} for name, q in self.posteriors.items()},
            "draws": None if self._draws is None else self._draws.state_dict(),
            "optimiser": None if self._optimiser is None else self._optimiser.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        if not state["posteriors"]:
            return
        taken, device = {}, self.prior.parameters[0].device
        for name, p in zip(self.prior.names, self.prior.parameters, strict=True):
            kept = {key: value for key, value in state["posteriors"][name].items() if key != "axis"}
            sides = range(sum(key.startswith("basis") for key in kept))
            spectra = [(kept[f"values{side}"].to(device), kept[f"basis{side}"].to(device)) for side in sides]
            taken[name] = MatrixNormal(p, spectra, state["posteriors"][name]["axis"])
            taken[name].load_state_dict(kept)
        self._take(taken)
        self._draws = None if state["draws"] is None else Draws.of_state(taken, state["draws"])
        if self._optimiser is not None:
            self._optimiser.load_state_dict(state["optimiser"])
