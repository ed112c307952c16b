"""How near are cheap curvatures to that of the whole training set? Fits of a part, and moving averages over steps.

    python -m scripts.fits NAME [key=value ...]

A run by natural gradients under Laplace; after every second epoch all of them at the same weights and precisions.
Writes results/fits/NAME.json.
"""

import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from time import process_time
from typing import Any

import torch

from ellarepro.config.compose import compose
from ellarepro.config.resolve import check_combination
from ellarepro.curvature.moving import MovingCurvature
from ellarepro.curvature.spectra import SpectralCurvature
from ellarepro.evidence.marglik import Fit, MarginalLikelihood
from ellarepro.results.provenance import git_commit, hardware
from ellarepro.runs.preparing import prepare
from ellarepro.training.loop import Trainer

SHARES = (1 / 40, 1 / 16, 1 / 8, 1 / 4)
MOVING = {"0.95, every 15": (0.95, 15), "0.95, every 5": (0.95, 5), "0.9, every 5": (0.9, 5), "0.8, every 5": (0.8, 5)}
FOLDER = Path(__file__).parents[1] / "results" / "fits"


def main(name: str, *keys: str) -> None:
    """Run and compare; what is found is written after each comparison."""
    config = compose(("recipe=natural", "objective=laplace", "threads=1", "device=cpu", *keys))
    trainer, _ = prepare(check_combination(config))
    made = {"git_commit": git_commit(), "hardware": hardware(torch.device("cpu"))}
    record: dict[str, Any] = {"keys": keys, **made, "config": config, "epochs": []}
    averages = {title: MovingCurvature(trainer.model, decay=d, every=n) for title, (d, n) in MOVING.items()}
    step = trainer._step

    def observed(inputs, targets, numbers):
        for average in averages.values():
            average.observe(inputs)
        return step(inputs, targets, numbers)

    def on_epoch(epoch: int, metrics: dict[str, Any]) -> None:
        if epoch % 2 == 0:
            record["epochs"].append({"epoch": epoch, **compared(trainer, averages)})
            FOLDER.mkdir(exist_ok=True)
            (FOLDER / f"{name}.json").write_text(json.dumps(record, indent=1, default=str) + "\n")
            print(epoch, record["epochs"][-1], flush=True)

    trainer._step, trainer.on_epoch = observed, on_epoch
    trainer.run()


def compared(trainer: Trainer, averages: dict[str, MovingCurvature]) -> dict[str, Any]:
    """Of each way its CPU seconds, and beside a fit of all data the relative error of log-determinant and numbers."""
    objective = trainer.objective
    size, settings = len(objective.data), objective.settings.fit
    generator = torch.Generator().manual_seed(trainer.epoch)

    def fit(images: int) -> MarginalLikelihood:
        data = objective.data.first(images)
        settings_ = replace(settings, fit_size=None)
        return Fit(
            trainer.model, objective.prior, data, settings_, generator, objective.likelihood, data_size=size
        ).whole()

    whole = fit(size)
    ways = {"all images again": lambda: fit(size)}
    ways |= {f"{round(share * size)} images": partial(fit, round(share * size)) for share in SHARES}
    for title, average in averages.items():
        ways[title] = lambda average=average: MarginalLikelihood(
            SpectralCurvature.from_blocks(average.average.blocks(size)), 0.0, whole.squared_norms, size
        )
    eta, found = objective.prior.log_precision.detach(), {}
    wanted, numbers = whole.log_det_ratio(eta.exp()).item(), whole.effective_parameters(eta)
    for title, way in ways.items():
        before = process_time()
        got = way()
        seconds = process_time() - before
        errors = (got.effective_parameters(eta) / numbers - 1).abs()[numbers > 0.5]
        found[title] = {
            "seconds": round(seconds, 2),
            "log_det_error": round(got.log_det_ratio(eta.exp()).item() / wanted - 1, 5),
            "effective_numbers_error": round(median(errors.tolist()), 5),
        }
    return {"half_log_det_per_datum": wanted / 2 / size, "ways": found}


if __name__ == "__main__":
    main(*sys.argv[1:])
