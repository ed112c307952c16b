"""What a trained network is worth: the numbers of a result."""

import time
from collections.abc import Sequence
from typing import cast

from torch import Tensor

from ellarepro.config.schema import Config
from ellarepro.curvature.scores import correct_classes
from ellarepro.data import Samples, Task
from ellarepro.evidence.evaluation import outputs_of
from ellarepro.network import Network
from ellarepro.results import UNTRAINED, RunResult, git_commit, hardware, packed, peak_memory, versions
from ellarepro.symmetry.ablation import path_use
from ellarepro.symmetry.shares import effective_share, has_choice, relative_effective_parameters
from ellarepro.training.loop import Trainer


def parameter_count(trainer: Trainer) -> int:
    """Numbers that training can change."""
    return sum(p.numel() for p in trainer.model.parameters())


def note_untrained(trainer: Trainer) -> None:
    """Keep in the history what a run's paths have before any training: what is learned is the difference.

    Nothing where no layer has several paths, where training has begun, and where the objective has no such numbers. The
    trainer is left as it was, its generator and time apart from the time that this takes.
    """
    tensors = cast(Network, trainer.model).tensor_info()
    if trainer.epoch or trainer.steps_done or not has_choice(tensors):
        return
    started = time.monotonic()
    if effective := trainer.objective.untrained(trainer.generator.initial_seed()):
        trainer.history[UNTRAINED] = {name: [number] for name, number in effective.items()}
    trainer.seconds += time.monotonic() - started


def measured(config: Config, trainer: Trainer, task: Task, code: Sequence[str] = ()) -> RunResult:
    """What the trained network of a run is worth, with all that a result says of where it comes from.

    Args:
        code: states of the code that the run went through, in order, the first one at its start.

    Raises:
        RunFailure: the curvature is not finite.
    """
    network, objective = cast(Network, trainer.model), trainer.objective
    tensors, precisions, device = network.tensor_info(), objective.prior.precisions(), task.train.targets.device
    outputs = outputs_of(network, task.test)
    scores = objective.likelihood.scores(outputs, task.test.targets)
    report = objective.report(task.test, trainer.generator, trainer.pause_within)
    use = path_use(network, precisions, task.train, task.test, likelihood=objective.likelihood)
    trainer.lap()
    return RunResult(
        run_id=config.run_id,
        dataset=config.dataset.name,
        layer=config.layer.name,
        prior=config.prior.name,
        objective=config.objective.name,
        budget=config.budget.name,
        seed=config.seed,
        n_params=parameter_count(trainer),
        epochs=config.epochs,
        train_size=len(task.train),
        test_accuracy=scores.accuracy,
        test_nll=scores.nll,
        test_rmse=scores.rmse,
        expected_calibration_error=scores.calibration_error,
        prior_precision=precisions,
        relative_effective_parameters=relative_effective_parameters(report["effective_parameters"], tensors),
        effective_share=effective_share(report["effective_parameters"], tensors),
        path_use=use,
        tensors=tensors,
        history=trainer.history,
        fallbacks=dict(objective.fallbacks),
        wall_seconds=trainer.seconds,
        device=str(device),
        hardware=hardware(device),
        versions=versions(),
        git_commit=code[0].partition(" ")[0] if code else git_commit(),
        data_fingerprint=task.fingerprint,
        config=dict(config.record),
        source_fingerprint=task.source_fingerprint,
        peak_memory=peak_memory(device),
        code_changes=list(code) if len(code) > 1 else [],
        test_size=len(task.test),
        test_correct="" if scores.accuracy is None else _correct(outputs, task.test),
        **report,
    )


def _correct(outputs: Tensor, test: Samples) -> str:
    return packed(correct_classes(outputs.log_softmax(1), test.targets).numpy(force=True))
