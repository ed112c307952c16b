"""What studies of many runs have in common: what is missing is run, what there is becomes a page and a figure."""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ellarepro.config.explain import choices_of
from ellarepro.config.resolve import check_combination
from ellarepro.config.sweep import Sweep, expand
from ellarepro.errors import UserError, command
from ellarepro.figures import save
from ellarepro.files import write_atomically
from ellarepro.launching.launch import failures, launch
from ellarepro.results import RunResult, read_result, result_path


@dataclass(frozen=True)
class Study:
    """Runs that answer one question together.

    Attributes:
        name: of its script.
        question: one line.
        experiments: folder of configs/experiment/ whose choices are its runs.
        defaults: further keys of its runs, which what a user says comes after.
        order: what a configuration is sorted by; the smallest is run first.
        page: the text, from results, how many were asked for, and what a person reads in them.
        draw: the figure.
    """

    name: str
    question: str
    experiments: str
    defaults: tuple[str, ...]
    order: Callable[[Mapping[str, Any]], Any]
    page: Callable[[Sequence[RunResult], int, str], str]
    draw: Callable[[Sequence[RunResult]], Figure]

    def main(self, arguments: Sequence[str] | None = None) -> int:
        """Run what is missing, write the study's files; the exit status is 1 where a run failed, 2 for a mistake."""
        return command(self.name)(self._main)(arguments)

    def _main(self, arguments: Sequence[str] | None) -> int:
        parser = argparse.ArgumentParser(prog=f"python -m scripts.{self.name}", description=self.question)
        parser.add_argument("keys", nargs="*", metavar="key=value", help="for all runs, as for python -m ellarepro")
        parser.add_argument("--report", action="store_true", help="run nothing, write the files from what there is")
        options = parser.parse_intermixed_args(arguments)
        sweep = self.sweep(options.keys)
        left = [config for config in sweep.configs if not result_path(config).exists()]
        print(f"{len(sweep.configs)} runs, {len(sweep.configs) - len(left)} finished before", flush=True)
        lines, status = failures(launch(left, sweep.hydra)) if left and not options.report else ([], 0)
        self.write(finished(sweep.configs), len(sweep.configs), Path(sweep.configs[0]["output_dir"]).parent)
        for line in lines:
            print(f"{self.name}: {line}", file=sys.stderr)
        return status

    def sweep(self, keys: Sequence[str] = ()) -> Sweep:
        """The runs of the study, with `keys` for all of them, checked.

        Raises:
            UserError: a mistake in the keys.
        """
        runs = [name for name in choices_of("experiment") if name.startswith(f"{self.experiments}/")]
        sweep = expand([f"experiment={','.join(runs)}", "threads=1", *self.defaults, *keys], multirun=True)
        for config in sweep.configs:
            check_combination(config)
        return replace(sweep, configs=sorted(sweep.configs, key=self.order))

    def write(self, results: Sequence[RunResult], asked: int, folder: Path) -> None:
        """Write study.md and study.png of `results`, of `asked` runs, to `folder`.

        Raises:
            UserError: there are no results.
            OSError: a file cannot be written.
        """
        if not results:
            raise UserError(f"output_dir: no run of the study is finished there; {asked} were asked for")
        text = self.page(results, asked, reading_in(folder / "reading.md"))
        publish(folder / "study.md", text, self.draw(results))


def script(main: Callable[[], None], about: str) -> int:
    """Call `main` of a script that takes no arguments, `--help` apart, which prints `about`; the exit status."""
    name = Path(sys.argv[0]).stem
    formatter = argparse.RawDescriptionHelpFormatter
    argparse.ArgumentParser(prog=f"python -m scripts.{name}", description=about, formatter_class=formatter).parse_args()

    @command(name)
    def called() -> int:
        main()
        return 0

    return called()


def reading_in(file: Path) -> str:
    """What a person read in the results; empty where nobody has written it."""
    return file.read_text(encoding="utf-8") if file.exists() else ""


def publish(page: Path, text: str, figure: Figure) -> None:
    """Write `text` to `page` and `figure` beside it, and say where.

    Raises:
        OSError: a file cannot be written.
    """
    write_atomically(page, text.encode())
    save(figure, page.with_suffix(".png"))
    print(page)


def finished(configs: Sequence[Mapping[str, Any]]) -> list[RunResult]:
    """The results that there are of the runs of `configs`."""
    return [read_result(result_path(config)) for config in configs if result_path(config).exists()]
