"""What was tried on the ascent beside what every run may set: one `Trainer` with options, for the study only."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ellarepro.curvature.eigen import symmetric_eigenvectors
from ellarepro.curvature.factors import MomentSum
from ellarepro.curvature.spectra import SpectralCurvature
from ellarepro.curvature.structures import Block, Factor
from ellarepro.data import Samples
from ellarepro.evidence.marglik import MarginalLikelihood, fit, total_loss
from ellarepro.training.loop import Trainer


@dataclass(frozen=True)
class Options:
    """One change a field; the defaults are the ascent of every run.

    Attributes:
        matched: precisions start at this share of one over the mean square of the weights as they are drawn, so that no
            path is preferred in the scale of its output either; None leaves them at `prior.precision`.
        relaxed_precision: at which the weights of F-FC start; None leaves them as they are.
        temperature: at which the likelihood starts, growing geometrically to 1 over `temperature_epochs`.
        profile_from: first epoch with profile steps: after the hyper-steps from delta to delta', the weights go to
            (H + delta')^-1 (H + delta) theta in the Kronecker eigenbasis, unless that raises the objective; or never.
        fresh: images a fit, drawn afresh each time; None takes those of `objective.fit_size`.
        average: weight of the past in a running mean of the factors; 0 takes the last fit alone.
        fan_in_steps: learning rates also divided by the root of the fan-in, so that a step changes each map alike.
    """

    matched: float | None = None
    relaxed_precision: float | None = None
    temperature: float = 1.0
    temperature_epochs: int = 0
    profile_from: int | None = None
    fresh: int | None = None
    average: float = 0.0
    fan_in_steps: bool = False


@dataclass
class Ascent(Trainer):
    """A trainer with `options`."""

    options: Options = Options()
    averaged: dict[str, Block] | None = None

    def __post_init__(self):
        super().__post_init__()
        self._start()

    @classmethod
    def of(cls, trainer: Trainer, options: Options) -> "Ascent":
        """The same run as `trainer`, before its first epoch, with `options`."""
        parts = (trainer.model, trainer.prior, trainer.task, trainer.weights, trainer.laplace, trainer.generator)
        return cls(*parts, options=options)

    @torch.no_grad()
    def _start(self) -> None:
        log_precision, weights = (
            self.prior.log_precision,
            dict(zip(self.prior.names, self.prior.parameters, strict=True)),
        )
        for index, (name, p) in enumerate(weights.items()):
            if p.ndim > 1 and self.options.matched is not None:
                log_precision[index] = math.log(self.options.matched / p.square().mean().item())
            if p.ndim > 1 and ".f_fc." in name and self.options.relaxed_precision is not None:
                log_precision[index] = math.log(self.options.relaxed_precision)
        for group in self.model.factor_groups():
            where = torch.tensor([self.prior.names.index(name) for name in group])
            log_precision[where] = log_precision[where].mean()
        if self.options.fan_in_steps:
            names = {id(p): name for name, p in weights.items()}
            for group in self.optimiser.param_groups:
                group["lr_scale"] /= _fan_in(self.model, names[id(group["params"][0])]) ** 0.5 / 54**0.5

    def _evidence(self) -> MarginalLikelihood:
        """The marginal likelihood at the current weights, as the options say: of hyper-steps, too."""
        if self.options == Options():
            return super()._evidence()
        data, used, settings = self.task.train, self.task.train, self.laplace.fit
        if self.options.fresh:
            chosen = torch.randperm(len(data), generator=self.generator)[: self.options.fresh]
            used = Samples(data.inputs[chosen], data.targets[chosen])
            settings = replace(settings, fit_size=None)
        found = fit(self.model, self.prior, used, settings, self.generator)
        scale, temperature = len(data) / len(used), self.temperature()
        blocks = self._average({name: block.scaled(scale) for name, block in found.curvature.blocks.items()})
        tempered = SpectralCurvature.from_blocks({name: block.scaled(temperature) for name, block in blocks.items()})
        curvature = SpectralCurvature(tempered.eigenvalues, blocks)
        return MarginalLikelihood(curvature, found.loss * scale * temperature, found.squared_norms, len(data))

    def temperature(self) -> float:
        """The power of the likelihood in the current epoch."""
        left = 1 - self.epoch / self.options.temperature_epochs if self.options.temperature_epochs else 0.0
        return self.options.temperature ** max(left, 0.0)

    def _average(self, blocks: dict[str, Block]) -> dict[str, Block]:
        past = self.options.average
        if self.averaged is not None and past:
            pairs = {name: zip(self.averaged[name].factors, b.factors, strict=True) for name, b in blocks.items()}
            mixed = {name: [old * past + new * (1 - past) for old, new in pair] for name, pair in pairs.items()}
            factors = {name: [Factor(MomentSum(matrix)) for matrix in pair] for name, pair in mixed.items()}
            blocks = {name: Block(factors[name], block.group_axis) for name, block in blocks.items()}
        self.averaged = blocks
        return blocks

    def _train_epoch(self) -> dict[str, float]:
        with self._tempered():
            return super()._train_epoch()

    @contextmanager
    def _tempered(self) -> Iterator[None]:
        # Adam does not see the scale of the objective: a likelihood to the power t is a prior t times as strong.
        shift = math.log(self.temperature())
        with torch.no_grad():
            self.prior.log_precision -= shift
        try:
            yield
        finally:
            with torch.no_grad():
                self.prior.log_precision += shift

    def _learn_precisions(self) -> dict[str, float]:
        before = self.prior.log_precision.detach().exp()
        metrics = super()._learn_precisions()
        if self.options.profile_from is not None and self.epoch >= self.options.profile_from:
            self._profile(before, self.prior.log_precision.detach().exp())
        return metrics

    @torch.no_grad()
    def _profile(self, before: Tensor, after: Tensor) -> None:
        """Weights to the maximum of the quadratic model at the new precisions, unless the objective itself rises."""

        def objective() -> float:
            return total_loss(self.model, self.task.train, 500) + (after * self.prior.squared_norms()).sum().item() / 2

        kept, start = [p.clone() for p in self.prior.parameters], objective()
        for p, block, old, new in zip(self.prior.parameters, self.averaged.values(), before, after, strict=True):
            if p.ndim > 1:
                p.copy_(_shrunk(p, block, old.item(), new.item()))
        if objective() > start:
            for p, saved in zip(self.prior.parameters, kept, strict=True):
                p.copy_(saved)


def _shrunk(weights: Tensor, block: Block, old: float, new: float) -> Tensor:
    """(H + new)^-1 (H + old) theta of one tensor, in the eigenbasis of its block."""
    (first, left), (second, right) = (symmetric_eigenvectors(factor) for factor in block.factors)
    eigenvalues = first[:, :, None] * second[:, None, :]
    groups, rows, columns = eigenvalues.shape
    if block.group_axis == 1:
        grouped = weights.reshape(rows, groups, columns).transpose(0, 1)
    else:
        grouped = weights.reshape(groups, rows, columns)
    turned = left.mT @ grouped @ right * (eigenvalues + old) / (eigenvalues + new)
    back = left @ turned @ right.mT
    return (back.transpose(0, 1) if block.group_axis == 1 else back).reshape(weights.shape)


def _fan_in(model: torch.nn.Module, name: str) -> int:
    """Terms in the sum that an output of this tensor's layer is."""
    layer, _, _ = name.rpartition(".")
    weight = model.get_parameter(f"{layer}.weight")
    return {"theta2": weight[0, 0].numel(), "theta1": weight.shape[1]}.get(layer.rpartition(".")[2], weight[0].numel())
