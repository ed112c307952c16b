"""`python -m ellarepro`: one run, or with -m a sweep; a mistake is one message and exit status 2."""

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from typing import NoReturn

import hydra

from ellarepro.config.compose import Sweep, expand
from ellarepro.config.explain import CONFIGS, help_text
from ellarepro.config.schema import Config, register
from ellarepro.errors import UserError, command

SHOWN_BY_HYDRA = ("hydra_help", "version", "cfg", "info", "shell_completion")


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


class _Parser(ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(
            f"{message}; keys are written key=value; -m before them makes a sweep; --help lists keys and choices"
        )


def _parse(arguments: list[str]) -> Namespace:
    """The flags that are offered, most of them Hydra's, and the overrides, in any order.

    Raises:
        UserError: another flag; those of Hydra that would change where configurations come from are not offered.
    """
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("overrides", nargs="*")
    for flags in (("--help", "-h"), ("--multirun", "-m"), ("--shell-completion", "-sc")):
        parser.add_argument(*flags, action="store_true")
    for flag in ("--hydra-help", "--version", "--resolve"):
        parser.add_argument(flag, action="store_true")
    parser.add_argument("--cfg", "-c", choices=("job", "hydra", "all"))
    parser.add_argument("--package", "-p")
    parser.add_argument("--info", "-i", nargs="?", const="all")
    return parser.parse_intermixed_args(arguments)


def _show(arguments: list[str]) -> int:
    """What Hydra's flags ask for, such as `--cfg job` and `--info`; nothing runs. Hydra wants overrides in a row."""
    register()
    sys.argv[1:] = arguments
    hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="config")(lambda config: None)()
    return 0


def _run(config: Config) -> int:
    from ellarepro.run import run

    outcome = run(config)
    result = outcome.result
    evidence = result.neg_log_marglik_per_datum
    print(
        f"{result.tested_on} {result.measured(2)}, NLL {result.test_nll:.4f} nats"
        + ("" if evidence is None else f", -log marginal likelihood {evidence:.4f}{result.bounds_text(4)} nats a datum")
        + f"\n{outcome.folder / 'result.json'}"
    )
    return 0


def _sweep(sweep: Sweep) -> int:
    from ellarepro.config.resolve import check_combination
    from ellarepro.launching.launch import failures, launch

    for config in sweep.configs:
        check_combination(config)
    lines, status = failures(launch(sweep.configs, sweep.hydra))
    for line in lines:
        print(f"ellarepro: {line}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
