"""`python -m ellarepro`: a Hydra program whose mistakes end in one message and exit status 2."""

import itertools
import re
import sys
from pathlib import Path

import hydra
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ellarepro.errors import RunFailure, UserError

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
_IN_PROCESS_LAUNCHER = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"

_failures: list[int] = []


def main() -> int:
    """Run the configuration that the command line names; returns the exit status."""
    try:
        check_command_line(sys.argv[1:])
    except UserError as error:
        return _complain(error, 2)
    try:
        _hydra_main()
    except KeyboardInterrupt:
        return _complain("interrupted; the same command continues from the last checkpoint", 130)
    return max(_failures, default=0)


@hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="config")
def _hydra_main(cfg: DictConfig) -> None:
    from ellarepro.run import run

    try:
        outcome = run(cfg)
    except (UserError, RunFailure) as error:
        if HydraConfig.get().launcher._target_ != _IN_PROCESS_LAUNCHER:
            raise
        # In a sweep the other runs still go on; the status is given at the end.
        _failures.append(_complain(error, 2 if isinstance(error, UserError) else 1))
        return
    result = outcome.result
    evidence = result.neg_log_marglik_per_datum
    print(
        f"test accuracy {100 * result.test_accuracy:.2f}%, test NLL {result.test_nll:.4f} nats"
        + ("" if evidence is None else f", -log marginal likelihood {evidence:.4f} nats a datum")
        + f"\n{outcome.folder / 'result.json'}"
    )


def check_command_line(arguments: list[str]) -> None:
    """Compose every configuration that the overrides ask for, before anything runs.

    Raises:
        UserError: an unknown key or option, or a value that does not parse.
    """
    overrides = [a for a in arguments if not a.startswith("-") and "=" in a or a.startswith("~")]
    strays = [a for a in arguments if not a.startswith(("-", "~")) and "=" not in a]
    if strays and not any(a.startswith("-") for a in arguments):
        raise UserError(f"arguments are written key=value, got {strays[0]!r}; {_keys()}")
    try:
        for combination in _combinations(OverridesParser.create().parse_overrides(overrides)):
            with initialize_config_dir(str(CONFIGS), version_base="1.3"):
                OmegaConf.to_container(compose("config", combination), resolve=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(_explain(error)) from error


def _combinations(overrides: list[Override]) -> list[list[str]]:
    """One list of plain overrides for each point of a sweep; a range or glob stands for itself once."""
    choices = []
    for override in overrides:
        if override.is_choice_sweep() and not override.is_hydra_override():
            key = override.get_key_element()
            choices.append([f"{key}={value}" for value in override.sweep_string_iterator()])
        elif not override.is_sweep_override():
            choices.append([override.input_line])
    return [list(combination) for combination in itertools.islice(itertools.product(*choices), 100)]


def _explain(error: Exception) -> str:
    """Hydra's message in one paragraph that names the key, what was got and what is possible."""
    text = re.sub(r"\s+", " ", str(error)).strip()
    if found := re.search(r"Could not find '(\w+)/([^']*)'", text):
        group, got = found.groups()
        return f"{group}={got} is not possible; {group} is one of: {', '.join(_options(group))}"
    if found := re.search(r"Could not override '([^']+)'|Key '([^']+)' is not in struct", text):
        key = found.group(1) or found.group(2)
        parent = key.rpartition(".")[0]
        return f"there is no key {key}; {_keys(parent)}"
    return text


def _options(group: str) -> list[str]:
    folder = CONFIGS / group
    return sorted(str(path.relative_to(folder).with_suffix("")) for path in folder.rglob("*.yaml"))


def _keys(parent: str = "") -> str:
    """The keys that there are below `parent`, or at the top, as part of a message."""
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = compose("config")
    node = OmegaConf.select(config, parent) if parent else config
    if not isinstance(node, DictConfig):
        parent, node = "", config
    names = ", ".join(sorted(map(str, node)))
    return f"{parent} has {names}" if parent else f"keys are {names}, with sparse layers anchors, with gconv group"


def _complain(message: object, status: int) -> int:
    print(f"ellarepro: {message}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
