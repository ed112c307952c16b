"""What a trained network is worth: the numbers of a result."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, cast

import torch

from ellarepro.curvature.eigen import CurvatureError, counted
from ellarepro.curvature.memory import out_of_memory
from ellarepro.data import Task
from ellarepro.evidence.evaluation import Scores, evaluate
from ellarepro.evidence.marglik import Fit, MarginalLikelihood
from ellarepro.network import Network
from ellarepro.results import UNTRAINED, RunResult, git_commit, hardware, peak_memory, versions
from ellarepro.symmetry.ablation import path_use
from ellarepro.symmetry.shares import effective_share, has_choice, relative_effective_parameters
from ellarepro.training.loop import Trainer


def parameter_count(trainer: Trainer) -> int:
    """Numbers that training can change."""
    return sum(p.numel() for p in trainer.model.parameters())


def note_untrained(trainer: Trainer) -> None:
    """Keep in the history what a run's paths have before any training: what is learned is the difference.

    Nothing where no precisions are learned, where no layer has several paths, where training has begun, and where the
    fit fails: a run does without its reference. The trainer is left as it was, its generator and time apart from the
    time that this takes.
    """
    places = cast(Network, trainer.model).places()
    if trainer.laplace is None or trainer.epoch or trainer.steps_done or not has_choice(places):
        return
    started = time.monotonic()
    generator = torch.Generator(trainer.generator.device).manual_seed(trainer.generator.initial_seed())
    fit = Fit(trainer.model, trainer.prior, trainer.task.train, trainer.laplace.fit, generator)
    try:
        for _ in fit.batches():
            pass
        effective = fit.result().effective_parameters(trainer.prior.log_precision.detach()).tolist()
    except (CurvatureError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not out_of_memory(error):
            raise
        return
    trainer.history[UNTRAINED] = {name: [n] for name, n in zip(trainer.prior.names, effective, strict=True)}
    trainer.seconds += time.monotonic() - started


def measured(
    config: Mapping[str, Any], identity: str, trainer: Trainer, task: Task, code: Sequence[str] = ()
) -> RunResult:
    """What the trained network of the run `identity` is worth, with all that a result says of where it comes from.

    Args:
        code: states of the code that the run went through, in order, the first one at its start.

    Raises:
        RunFailure: the curvature is not finite.
    """
    network = cast(Network, trainer.model)
    places = network.places()
    scores = evaluate(trainer.model, task.test)
    evidence, effective, linearised = None, {}, None
    if trainer.laplace is not None:
        marglik = trainer.fit_evidence()
        log_precision = trainer.prior.log_precision.detach()
        evidence = marglik.evidence(log_precision).negative_per_datum
        effective = dict(zip(trainer.prior.names, marglik.effective_parameters(log_precision).tolist(), strict=True))
        if trainer.laplace.predictive_samples:
            linearised = asdict(_linearised(trainer, marglik, task))
    use = path_use(network, trainer.prior.precisions(), task.train, task.test)
    trainer.lap()
    return RunResult(
        run_id=identity,
        dataset=config["dataset"]["name"],
        layer=config["layer"]["name"],
        prior=config["prior"]["name"],
        objective=config["objective"]["name"],
        budget=config["budget"]["name"],
        seed=config["seed"],
        n_params=parameter_count(trainer),
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
        path_use=use,
        tensors=places,
        history=trainer.history,
        fallbacks=dict(trainer.fallbacks),
        wall_seconds=trainer.seconds,
        device=str(task.train.labels.device),
        hardware=hardware(task.train.labels.device),
        versions=versions(),
        git_commit=code[0].partition(" ")[0] if code else git_commit(),
        data_fingerprint=task.fingerprint,
        config=dict(config),
        source_fingerprint=task.source_fingerprint,
        peak_memory=peak_memory(task.train.labels.device),
        code_changes=list(code) if len(code) > 1 else [],
    )


def _linearised(trainer: Trainer, marglik: MarginalLikelihood, task: Task) -> Scores:
    from ellarepro.curvature.posterior import posterior_precision
    from ellarepro.evidence.predictive import evaluate_linearised, weight_deviations

    with counted(trainer.fallbacks):
        posterior = posterior_precision(marglik.curvature, trainer.prior.log_precision.detach().exp())
    samples = 0 if trainer.laplace is None else trainer.laplace.predictive_samples
    deviations = weight_deviations(trainer.model, posterior, samples, trainer.generator)
    return evaluate_linearised(trainer.model, deviations, task.test)
