"""One run, from configuration to result."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from omegaconf import OmegaConf

from ellarepro.config.schema import Config
from ellarepro.curvature.memory import out_of_memory
from ellarepro.data import Task
from ellarepro.errors import RunFailure, UserError
from ellarepro.figures import as_png, draw_run
from ellarepro.network import Network
from ellarepro.results import RESULT_FILE, RunResult, code_at_start, hardware, read_result
from ellarepro.resume.lock import LOCK_FILE, only_writer
from ellarepro.resume.signals import stopping
from ellarepro.runs.folder import RunFolder
from ellarepro.runs.measuring import measured, note_untrained, parameter_count
from ellarepro.runs.preparing import load_data, prepare
from ellarepro.runs.trained import WEIGHTS_FILE, digest, packed
from ellarepro.symmetry.shares import relative_effective_parameters
from ellarepro.tracking import Tracker, contents, tracked
from ellarepro.training.loop import Trainer
from ellarepro.training.progress import Moment, Progress, free_share


@dataclass(frozen=True)
class Outcome:
    """What a call did: the result, and whether it lay there from an earlier call."""

    result: RunResult
    folder: Path
    was_finished: bool


def run(config: Config, say: Callable[[str], None] = print, watch: Callable[[Moment], None] | None = None) -> Outcome:
    """Train, evaluate and write `config.folder`; a finished run is read back, an interrupted one continued.

    Args:
        config: as `config.compose` gives it.
        say: told what goes on, a line at a time.
        watch: told of each epoch that is over; a line of progress if not given and `progress` is true.

    Raises:
        UserError: the configuration, the data or a checkpoint is unusable.
        RunFailure: training diverged, or a file could not be written; the last good checkpoint stays.
        Interrupted: a signal came; the run's place is kept.
    """
    identity, code = config.run_id, code_at_start()
    if (outcome := _finished_before(config, say)) is not None:
        return outcome
    with _memory_or_failure(lambda: "before the first epoch"):
        trainer, task = prepare(config)
        memory = trainer.objective.check_memory()
    _make_folder(config.folder)
    with only_writer(config.folder, config.wait, say) as lock:
        if (outcome := _finished_before(config, say)) is not None:
            return outcome
        machine = hardware(task.train.targets.device)
        say(f"{identity}: {parameter_count(trainer):,} parameters, {len(task.train):,} training images, on {machine}")
        if memory:
            say(f"{identity}: {memory}")
        with stopping() as stop:
            run_folder = RunFolder(trainer, task, lock, stop, code, config.checkpoint_seconds, say)
            run_folder.write("config.yaml", OmegaConf.to_yaml(OmegaConf.create(dict(config.record))).encode())
            with tracked(config) as tracker:
                result = _train(config, trainer, task, run_folder, tracker, watch)
                picture = as_png(draw_run(result))
                # The result comes last: where it lies, nothing is missing.
                result = _keep_weights(config, trainer, run_folder, result)
                run_folder.write("effective_parameters.png", picture)
                run_folder.write(RESULT_FILE, result.to_json().encode())
                run_folder.checkpoints.discard()
                tracker.finish(result, picture)
        if again := {where: result.fallbacks[where] for where in ("float64", "cpu") if where in result.fallbacks}:
            say(f"{identity}: eigendecompositions that had to be taken again: {again}")
        if trainer.only_guesses:
            share = config.prior.plateau
            say(f"{identity}: no epoch had a loss below {share:g} of that of guessing: the prior never had a part")
    return Outcome(result, config.folder, was_finished=False)


def _finished_before(config: Config, say: Callable[[str], None]) -> Outcome | None:
    """The result that lies in the run's folder already, unless it is to be made anew.

    Raises:
        UserError: it is damaged, or of other data than `dataset.root` or `dataset.path` holds now.
    """
    if config.is_asked:
        return None
    try:
        result = read_result(config.result_file)
    except UserError as error:
        raise UserError(f"{error}; force=true runs it anew") from error
    key, location = config.dataset.key, config.dataset.location
    # A folder holds what it held, but a file may have been written anew.
    if key == "path" or result.config.get("dataset", {}).get("root") != location:
        task = load_data(config)
        kept, found = result.source_fingerprint or result.data_fingerprint, task.source_fingerprint
        if kept not in (found, task.fingerprint):
            raise UserError(
                f"dataset.{key}={location}: {config.run_id} was finished with other data "
                f"(fingerprint {kept}, there it is {found}); take another output_dir, or force=true to run it anew"
            )
    say(f"{config.run_id}: finished before, not run again (force=true runs it anew)")
    return Outcome(result, config.folder, was_finished=True)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / LOCK_FILE).touch()
    except OSError as error:
        raise UserError(
            f"output_dir={folder.parent}: cannot be written to ({error.strerror or error}); "
            "give a folder that can be made or written to"
        ) from error


def _train(
    config: Config,
    trainer: Trainer,
    task: Task,
    run_folder: RunFolder,
    tracker: Tracker,
    watch: Callable[[Moment], None] | None,
) -> RunResult:
    run_folder.restore()
    if watch is None and config.progress:
        watch = Progress(trainer.epoch).update
    tensors = cast(Network, trainer.model).tensor_info()
    free: tuple[str, float] | None = None

    def on_epoch(epoch: int, metrics: dict[str, Any]) -> None:
        nonlocal free
        if "effective_parameters" in metrics:
            free = free_share(relative_effective_parameters(metrics["effective_parameters"], tensors))
        if watch:
            evidence = [None, *trainer.history["neg_log_marglik_per_datum"]][-1]
            measure, value = trainer.objective.likelihood.measure, metrics[trainer.measure]
            watch(Moment(epoch, trainer.epochs, metrics["loss"], value, evidence, free, measure))
        tracker.log(contents.of_epoch(metrics, tensors), epoch)

    trainer.on_epoch, trainer.pause = on_epoch, run_folder.pause
    with _memory_or_failure(lambda: f"in epoch {trainer.epoch + 1}"):
        note_untrained(trainer)
        trainer.run()
        run_folder.save()
        return measured(config, trainer, task, run_folder.code)


def _keep_weights(config: Config, trainer: Trainer, run_folder: RunFolder, result: RunResult) -> RunResult:
    """The result, with the digest of the weights if they are kept."""
    if not config.keep_weights:
        (run_folder.folder / WEIGHTS_FILE).unlink(missing_ok=True)
        return result
    weights = packed(trainer.objective)
    run_folder.write(WEIGHTS_FILE, weights)
    return replace(result, weights_digest=digest(weights))


@contextmanager
def _memory_or_failure(when: Callable[[], str]) -> Iterator[None]:
    """Within the context, memory that does not suffice is a `RunFailure`."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not out_of_memory(error):
            raise
        raise RunFailure(f"out of memory {when()}: lower batch_size or alpha") from error
