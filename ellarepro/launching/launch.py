"""Carry out a sweep by the launcher that `hydra/launcher=` names."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.errors import InstantiationException
from hydra.experimental.callback import Callback
from hydra.types import HydraContext
from hydra.utils import instantiate
from omegaconf import DictConfig

from ellarepro.config.compose import loader
from ellarepro.config.schema import Config
from ellarepro.errors import UserError
from ellarepro.launching.sweep_runs import Ended, SweepRuns


def launch(
    configs: Sequence[Config], hydra_config: DictConfig, on_end: Callable[[Ended], None] | None = None
) -> list[Ended]:
    """Carry out one run a configuration, each once, and return how they ended.

    Args:
        configs: the settings of each.
        hydra_config: with `hydra.launcher`, as `compose.expand` gives it.
        on_end: called here with each run that has ended, by the project's own launchers.

    Raises:
        UserError: the launcher cannot work here, or with what it was told.
    """
    runs = SweepRuns(list({config.run_id: config for config in configs}.values()))
    with loader() as found:
        context = HydraContext(config_loader=found, callbacks=cast(Any, Callback()))
        if hydra_config.hydra.launcher._target_.startswith("ellarepro."):
            # Hydra's registry of plugins takes none from here.
            launcher = _own_launcher(hydra_config.hydra.launcher)
            launcher.on_end = on_end or launcher.on_end
            launcher.setup(hydra_context=context, task_function=runs, config=hydra_config)
        else:
            launcher = Plugins.instance().instantiate_launcher(
                hydra_context=context, task_function=runs, config=hydra_config
            )
        with _empty_folders_removed(Path(hydra_config.hydra.sweep.dir)):
            returns: Sequence[JobReturn] = launcher.launch([[]] * len(runs), initial_job_idx=0)
    return [job.return_value for job in returns]


@contextmanager
def _empty_folders_removed(folder: Path) -> Iterator[None]:
    """`folder`, which Hydra's launchers make and our runs leave empty, goes again, and those above it made with it."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        yield
    finally:
        with suppress(OSError):  # The first that is not empty, or was not made, ends it.
            for path in made:
                path.rmdir()


def _own_launcher(settings: DictConfig) -> Any:
    try:
        return instantiate(settings, _convert_="all")
    except InstantiationException as error:
        raise UserError(f"hydra.launcher: {error.__cause__ or error}") from error


def failures(ended: Sequence[Ended]) -> tuple[list[str], int]:
    """One line for each way in which runs did not end well, and the exit status: 2 if one was refused, else 1."""
    alike: dict[str, list[Ended]] = {}
    for run in ended:
        if run.status:
            alike.setdefault(run.line, []).append(run)
    lines = [f"{runs[0].label}{_others(len(runs) - 1)} {line}" for line, runs in alike.items()]
    return lines, max((run.status for run in ended), default=0)


def _others(count: int) -> str:
    return f" and {count} {'other run' if count == 1 else 'others'}" if count else ""
