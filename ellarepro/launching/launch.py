"""Carry out a sweep by the launcher that `hydra/launcher=` names."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hydra._internal.callbacks import Callbacks
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.errors import InstantiationException
from hydra.types import HydraContext
from hydra.utils import instantiate
from omegaconf import DictConfig

from ellarepro.config.compose import loader
from ellarepro.errors import UserError
from ellarepro.launching.cells import Cells, Ended
from ellarepro.results import run_id


def launch(
    configs: Sequence[Mapping[str, Any]], hydra_config: DictConfig, on_end: Callable[[Ended], None] | None = None
) -> list[Ended]:
    """Carry out one run a configuration, each once, and return how they ended.

    Args:
        configs: checked configurations.
        hydra_config: with `hydra.launcher`, as `sweep.expand` gives it.
        on_end: called here with each run that has ended, by the project's own launchers.

    Raises:
        UserError: the launcher cannot work here, or with what it was told.
    """
    cells = Cells(list({run_id(config): config for config in configs}.values()))
    with loader() as found:
        context = HydraContext(config_loader=found, callbacks=Callbacks())
        if hydra_config.hydra.launcher._target_.startswith("ellarepro."):
            # Hydra's registry of plugins takes none from here.
            launcher = _own_launcher(hydra_config.hydra.launcher)
            launcher.on_end = on_end or launcher.on_end
            launcher.setup(hydra_context=context, task_function=cells, config=hydra_config)
        else:
            launcher = Plugins.instance().instantiate_launcher(
                hydra_context=context, task_function=cells, config=hydra_config
            )
        returns: Sequence[JobReturn] = launcher.launch([[]] * len(cells), initial_job_idx=0)
    return [job.return_value for job in returns]


def _own_launcher(settings: DictConfig) -> Any:
    try:
        return instantiate(settings, _convert_="all")
    except InstantiationException as error:
        raise UserError(f"hydra.launcher: {error.__cause__ or error}") from error


def failures(ended: Sequence[Ended]) -> tuple[list[str], int]:
    """One line for each run that did not end well, and the exit status: 2 if one was refused, else 1 if one failed."""
    bad = [run for run in ended if run.status]
    return [f"{run.label} {run.line}" for run in bad], max((run.status for run in bad), default=0)
