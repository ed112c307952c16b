"""What studies of many runs have in common: what is missing is run, what there is becomes a page and a figure."""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ellarepro.errors import UserError, command
from ellarepro.figures import save
from ellarepro.launching.launch import failures, launch
from ellarepro.results import RunResult, read_result, result_path, short_commit
from ellarepro.resume.files import write_atomically
from ellarepro.settings.explain import choices_of
from ellarepro.settings.resolve import check_combination
from ellarepro.settings.sweep import Sweep, expand


@dataclass(frozen=True)
class Study:
    """Runs that answer one question together.

    Attributes:
        name: of its script.
        question: one line.
        sweeps: what is said for each of the sweeps that it consists of.
        defaults: further keys of all its runs, which what a user says comes after.
        order: what a configuration is sorted by; the smallest is run first.
        page: the text, from results, how many were asked for, and what a person reads in them.
        draw: the figure.
        elsewhere: folders of finished runs that are taken as they are, where they are some of its own.
    """

    name: str
    question: str
    sweeps: tuple[tuple[str, ...], ...]
    defaults: tuple[str, ...]
    order: Callable[[Mapping[str, Any]], Any]
    page: Callable[[Sequence[RunResult], int, str], str]
    draw: Callable[[Sequence[RunResult]], Figure]
    elsewhere: tuple[Path, ...] = ()

    def main(self, arguments: Sequence[str] | None = None) -> int:
        """Run what is missing, write the study's files; the exit status is 1 where a run failed, 2 for a mistake."""
        return command(self.name)(self._main)(arguments)

    def _main(self, arguments: Sequence[str] | None) -> int:
        parser = argparse.ArgumentParser(prog=f"python -m scripts.{self.name}", description=self.question)
        parser.add_argument("keys", nargs="*", metavar="key=value", help="for all runs, as for python -m ellarepro")
        parser.add_argument("--report", action="store_true", help="run nothing, write the files from what there is")
        options = parser.parse_intermixed_args(arguments)
        sweep = self.sweep(options.keys)
        left = self.unfinished(sweep.configs)
        print(f"{len(sweep.configs)} runs, {len(sweep.configs) - len(left)} finished before", flush=True)
        lines, status = failures(launch(left, sweep.hydra)) if left and not options.report else ([], 0)
        self.write(self.finished(sweep.configs), len(sweep.configs), Path(sweep.configs[0]["output_dir"]).parent)
        for line in lines:
            print(f"{self.name}: {line}", file=sys.stderr)
        return status

    def sweep(self, keys: Sequence[str] = ()) -> Sweep:
        """The runs of the study, with `keys` for all of them, checked.

        Raises:
            UserError: a mistake in the keys.
        """
        sweeps = [expand([*sweep, "threads=1", *self.defaults, *keys], multirun=True) for sweep in self.sweeps]
        runs = [run for sweep in sweeps for run in zip(sweep.configs, sweep.points, strict=True)]
        runs.sort(key=lambda run: self.order(run[0]))
        for config, _ in runs:
            check_combination(config)
        return replace(sweeps[0], configs=[config for config, _ in runs], points=[point for _, point in runs])

    def file_of(self, config: Mapping[str, Any]) -> Path:
        """Where the result of a run is, or will be."""
        own = result_path(config)
        places = [own, *(folder / own.parent.name / own.name for folder in self.elsewhere)]
        return next((file for file in places if file.exists()), own)

    def unfinished(self, configs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Those of `configs` that are to be run."""
        return [config for config in configs if config["force"] or not self.file_of(config).exists()]

    def finished(self, configs: Sequence[Mapping[str, Any]]) -> list[RunResult]:
        """The results that there are of the runs of `configs`."""
        return [read_result(file) for config in configs if (file := self.file_of(config)).exists()]

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


def experiments(folder: str) -> tuple[str, ...]:
    """What is said for the sweep of all choices in a folder of configs/experiment/."""
    return (f"experiment={','.join(name for name in choices_of('experiment') if name.startswith(f'{folder}/'))}",)


def made_of(results: Sequence[RunResult], asked: int) -> str:
    """How many of the runs that were asked for a page is made of, and where they come from, for its first lines."""
    keys = ("seed", "git_commit", "hardware")
    seeds, commits, machines = (sorted({str(getattr(result, key)) for result in results}) for key in keys)
    hours = sum(result.wall_seconds for result in results) / 3600
    places = f"commit {', '.join(map(short_commit, commits))}, {', '.join(machines)}, {hours:.1f} hours"
    return f"{len(results)} of {asked} runs, seeds {', '.join(seeds)}, {places}"


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
