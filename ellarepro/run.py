"""One run, from configuration to result: the only reader of Hydra's configuration."""

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf

from ellarepro.config.resolve import (
    anchor_settings,
    check_combination,
    device_of,
    laplace_settings,
    weight_settings,
)
from ellarepro.curvature.eigen import counted
from ellarepro.curvature.fitting import gatherer_of
from ellarepro.curvature.memory import FactorsTooLarge
from ellarepro.data import Task, load_task
from ellarepro.errors import UserError
from ellarepro.evaluation import Scores, evaluate
from ellarepro.figures import draw_run, save
from ellarepro.files import write_atomically
from ellarepro.marglik import MarginalLikelihood
from ellarepro.network import Network, build_network
from ellarepro.places import Place
from ellarepro.prior import LayerwisePrior
from ellarepro.progress import Progress
from ellarepro.results import RunResult, git_commit, hardware, read_result, run_id, versions, write_result
from ellarepro.shares import effective_share, relative_effective_parameters
from ellarepro.tracking import make_tracker
from ellarepro.training import Trainer
from ellarepro.use import path_use


@dataclass(frozen=True)
class Outcome:
    """What a call did: the result, and whether it lay there from an earlier call."""

    result: RunResult
    folder: Path
    was_finished: bool


def run(config: Mapping[str, Any], say: Callable[[str], None] = print) -> Outcome:
    """Train, evaluate and write `<output_dir>/<run_id>/`; a finished run is read back, an interrupted one continued.

    Args:
        config: as `config.compose` gives it.
        say: told what goes on, a line at a time.

    Raises:
        UserError: the configuration, the data or a checkpoint is unusable.
        RunFailure: training diverged; the last good checkpoint stays.
    """
    identity = run_id(config)
    folder = Path(config["output_dir"]) / identity
    if (folder / "result.json").exists() and not config["force"]:
        say(f"{identity}: finished before, not run again (force=true runs it anew)")
        return Outcome(read_result(folder / "result.json"), folder, was_finished=True)
    trainer, task = prepare(config)
    memory = check_fit_memory(trainer, task)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(dict(config))).encode())
    checkpoint = folder / "checkpoint.pt"
    if config["force"]:
        checkpoint.unlink(missing_ok=True)
    machine = hardware(task.train.labels.device)
    say(f"{identity}: {_parameters(trainer):,} parameters, {len(task.train):,} training images, on {machine}")
    if memory:
        say(f"{identity}: {memory}")
    result = _train(config, identity, trainer, task, folder, say)
    if again := {where: result.fallbacks[where] for where in ("float64", "cpu") if where in result.fallbacks}:
        say(f"{identity}: eigendecompositions that had to be taken again: {again}")
    write_result(result, folder)
    save(draw_run(result), folder / "effective_parameters.png")
    checkpoint.unlink(missing_ok=True)
    return Outcome(result, folder, was_finished=False)


def prepare(config: Mapping[str, Any]) -> tuple[Trainer, Task]:
    """What `run` trains and on what: validates the configuration, loads the data, builds the network; writes nothing.

    Raises:
        UserError: the configuration or the data is unusable.
    """
    check_combination(config)
    device, weights, laplace = device_of(config), weight_settings(config), laplace_settings(config)
    if config["threads"] is not None:
        torch.set_num_threads(config["threads"])
    task = load_task(
        **{key: config["dataset"][key] for key in ("name", "source", "root", "download", "augment", "strength")},
        train_size=config["train_size"],
        test_size=config["test_size"],
    ).to(device)
    _seed(config["seed"])
    model = _network(config, task).to(device)
    fixed = model.anchor_values() if config["prior"].get("anchors") == "fixed" else ()
    tied = model.factor_groups() if laplace is not None and laplace.tied else ()
    prior = LayerwisePrior(model, config["prior"]["precision"], fixed, tied)
    generator = torch.Generator(device).manual_seed(config["seed"])
    return Trainer(model, prior, task, weights, laplace, generator), task


def _network(config: Mapping[str, Any], task: Task) -> Network:
    try:
        return build_network(
            config["layer"]["name"],
            in_channels=task.in_channels,
            num_classes=task.num_classes,
            alpha=config["alpha"],
            image_size=task.image_size,
            anchors=anchor_settings(config),
            group=config["group"] or "c1",
            relaxation=config["relaxation"],
        )
    except ValueError as error:
        raise UserError(str(error)) from error


def check_fit_memory(trainer: Trainer, task: Task) -> str | None:
    """What the curvature factors will take, as a line; None where none are gathered.

    Raises:
        UserError: more than is free, or a network too large for the structure.
    """
    if trainer.laplace is None:
        return None
    settings, images = trainer.laplace.fit, task.train.images
    try:
        gatherer = gatherer_of(trainer.model, settings, trainer.generator)
        return gatherer.forecast(images[: settings.fit_size]).check(images.device)
    except FactorsTooLarge as error:
        raise UserError(str(error)) from error
    except ValueError as error:
        raise UserError(f"objective.{error}") from error


def _parameters(trainer: Trainer) -> int:
    return sum(p.numel() for p in trainer.model.parameters())


def _seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True


def _train(
    config: Mapping[str, Any], identity: str, trainer: Trainer, task: Task, folder: Path, say: Callable[[str], None]
) -> RunResult:
    checkpoint = folder / "checkpoint.pt"
    trainer.restore(checkpoint)
    if trainer.epoch:
        say(f"{identity}: continues after epoch {trainer.epoch} of {config['epochs']}")
    tracker = make_tracker(
        config["tracking"]["name"],
        run_id=identity,
        config=dict(config),
        folder=folder,
        **{key: value for key, value in config["tracking"].items() if key != "name"},
    )
    progress = Progress(config["epochs"], trainer.epoch) if config["progress"] else None

    places = trainer.model.places()

    def on_epoch(epoch: int, metrics: dict[str, Any]) -> None:
        if progress:
            evidence = trainer.history["neg_log_marglik_per_datum"]
            progress.update(epoch, metrics["loss"], metrics["train_accuracy"], evidence[-1] if evidence else None)
        tracker.log(_tracked(metrics, places), epoch)

    trainer.on_epoch = on_epoch
    trainer.run(checkpoint, config["checkpoint_seconds"])
    result = _result(config, identity, trainer, task)
    tracker.finish({"test/accuracy": result.test_accuracy, "test/nll": result.test_nll})
    return result


def _tracked(metrics: Mapping[str, Any], places: Mapping[str, Place]) -> dict[str, float]:
    """Metrics under the names that the tracker shows; `places` tells of each tensor what it is."""
    named = {
        "train/loss": metrics["objective"],
        "train/nll": metrics["loss"],
        "train/accuracy": metrics["train_accuracy"],
    }
    if "neg_log_marglik_per_datum" in metrics:
        named["marglik/neg_log_marglik_per_datum"] = metrics["neg_log_marglik_per_datum"]
        for group in ("prior_precision", "effective_parameters"):
            named |= {f"{group}/{name}": value for name, value in metrics[group].items()}
        for layer, paths in relative_effective_parameters(metrics["effective_parameters"], places).items():
            named |= {f"relative_effective_parameters/{layer}/{path}": share for path, share in paths.items()}
    return named


def _result(config: Mapping[str, Any], identity: str, trainer: Trainer, task: Task) -> RunResult:
    started = time.monotonic()
    places = trainer.model.places()
    scores = evaluate(trainer.model, task.test)
    evidence, effective, linearised = None, {}, None
    if trainer.laplace is not None:
        marglik = trainer.fit_evidence()
        log_precision = trainer.prior.log_precision.detach()
        evidence = marglik.evidence(log_precision).negative_per_datum
        effective = dict(zip(trainer.prior.names, marglik.effective_parameters(log_precision).tolist(), strict=True))
        if trainer.laplace.predictive_samples:
            linearised = asdict(_linearised(trainer, marglik, task))
    return RunResult(
        run_id=identity,
        dataset=config["dataset"]["name"],
        layer=config["layer"]["name"],
        prior=config["prior"]["name"],
        objective=config["objective"]["name"],
        budget=config["budget"]["name"],
        seed=config["seed"],
        n_params=_parameters(trainer),
        epochs=config["epochs"],
        train_size=len(task.train),
        test_accuracy=scores.accuracy,
        test_nll=scores.nll,
        expected_calibration_error=scores.calibration_error,
        linearised=linearised,
        neg_log_marglik_per_datum=evidence,
        prior_precision=trainer.prior.precisions(),
        effective_parameters=effective,
        relative_effective_parameters=relative_effective_parameters(effective, places),
        effective_share=effective_share(effective, places),
        path_use=path_use(trainer.model, trainer.prior.precisions(), task.train, task.test),
        tensors=places,
        history=trainer.history,
        fallbacks=dict(trainer.fallbacks),
        wall_seconds=trainer.seconds + time.monotonic() - started,
        device=str(task.train.labels.device),
        hardware=hardware(task.train.labels.device),
        versions=versions(),
        git_commit=git_commit(),
        data_fingerprint=task.fingerprint,
        config=dict(config),
    )


def _linearised(trainer: Trainer, marglik: MarginalLikelihood, task: Task) -> Scores:
    from ellarepro.curvature.posterior import posterior_precision
    from ellarepro.predictive import evaluate_linearised, weight_deviations

    with counted(trainer.fallbacks):
        posterior = posterior_precision(marglik.curvature, trainer.prior.log_precision.detach().exp())
    samples = trainer.laplace.predictive_samples
    deviations = weight_deviations(trainer.model, posterior, samples, trainer.generator)
    return evaluate_linearised(trainer.model, deviations, task.test)
