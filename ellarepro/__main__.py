"""`python -m ellarepro`: one run, or with -m a sweep; a mistake is one message and exit status 2."""

import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser

from ellarepro.errors import UserError, command
from ellarepro.settings.explain import CONFIGS, help_text
from ellarepro.settings.schema import register
from ellarepro.settings.sweep import Sweep, expand

SHOWN_BY_HYDRA = ("hydra_help", "cfg", "info", "shell_completion")


@command("ellarepro")
def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out what the command line asks for; returns the exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    asked = _parse(arguments)
    if asked.help:
        print(help_text())
        return 0
    sweep = expand(asked.overrides, multirun=asked.multirun)
    if any(getattr(asked, flag) for flag in SHOWN_BY_HYDRA):
        return _show([*asked.overrides, *(word for word in arguments if word not in asked.overrides)])
    return _sweep(sweep) if sweep.is_multirun else _run(sweep.configs[0])


def _parse(arguments: list[str]) -> Namespace:
    """Hydra's own flags and the overrides, in any order.

    Raises:
        UserError: an unknown flag, or one that would change where configurations come from.
    """

    def refuse(message: str) -> None:
        raise UserError(f"{message}; keys are written key=value, -m before them sweeps, --help shows them")

    parser = get_args_parser()
    setattr(parser, "error", refuse)  # noqa: B010 (a type checker takes no method for a variable)
    asked = parser.parse_intermixed_args(arguments)
    for flag in ("config_path", "config_name", "config_dir", "experimental_rerun"):
        if getattr(asked, flag):
            refuse(f"--{flag.replace('_', '-')} is not offered: every configuration is made of configs/")
    return asked


def _show(arguments: list[str]) -> int:
    """What Hydra's flags ask for, such as `--cfg job` and `--info`; nothing runs. Hydra wants overrides in a row."""
    register()
    sys.argv[1:] = arguments
    hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="config")(lambda config: None)()
    return 0


def _run(config: Mapping[str, Any]) -> int:
    from ellarepro.run import run

    outcome = run(config)
    result = outcome.result
    evidence = result.neg_log_marglik_per_datum
    print(
        f"test {result.measured(2)}, test NLL {result.test_nll:.4f} nats"
        + ("" if evidence is None else f", -log marginal likelihood {evidence:.4f}{result.bounds_text(4)} nats a datum")
        + f"\n{outcome.folder / 'result.json'}"
    )
    return 0


def _sweep(sweep: Sweep) -> int:
    from ellarepro.launching.launch import failures, launch
    from ellarepro.settings.resolve import check_combination

    for config in sweep.configs:
        check_combination(config)
    lines, status = failures(launch(sweep.configs, sweep.hydra))
    for line in lines:
        print(f"ellarepro: {line}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
