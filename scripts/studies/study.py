"""What studies of many runs have in common: what is missing is run, what there is becomes a page and a figure."""

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ellarepro.config.compose import Sweep, expand
from ellarepro.config.explain import choices_of
from ellarepro.config.resolve import check_combination
from ellarepro.config.schema import Config
from ellarepro.errors import UserError
from ellarepro.figures import save
from ellarepro.launching.launch import failures, launch
from ellarepro.results import RunResult, read_result, short_commit
from ellarepro.resume.files import write_atomically
from ellarepro.tables import unique_runs
from ellarepro.tables.markdown import sections

RESULTS = Path(__file__).parents[2] / "results"
Measure = Callable[[RunResult], float | None]


@dataclass(frozen=True)
class Study:
    """Runs that answer one question together.

    Attributes:
        name: of its folder in results/.
        question: the title of its page.
        about: what a reader of the page must know, beside how many runs it is made of.
        body: the sections of the page, from results.
        draw: the figure.
        sweeps: what is said for each of the sweeps that it consists of; none: it reads what others have run.
        order: what a configuration is sorted by; the smallest is run first.
        elsewhere: folders in results/ of finished runs; those that are some of its own are taken as they are, all of
            them where it has no sweeps.
        select: which of the results it is about.
    """

    name: str
    question: str
    about: str
    body: Callable[[Sequence[RunResult]], Iterable[str]]
    draw: Callable[[Sequence[RunResult]], Figure]
    sweeps: tuple[tuple[str, ...], ...] = ()
    order: Callable[[Config], Any] = lambda config: config.seed
    elsewhere: tuple[str, ...] = ()
    select: Callable[[Iterable[RunResult]], list[RunResult]] = list

    def carry_out(self, keys: Sequence[str] = (), report: bool = False) -> int:
        """Run what is missing, unless it is only to `report`, and write the files; 1 where a run failed.

        Raises:
            UserError: a mistake in `keys`, which are said for all runs.
        """
        configs: list[Config] = []
        lines, status, folder = [], 0, RESULTS / self.name
        if self.sweeps:
            sweep = self.sweep(keys)
            configs, folder = sweep.configs, Path(sweep.configs[0].output_dir).parent
            left = self.unfinished(configs)
            print(f"{len(configs)} runs, {len(configs) - len(left)} finished before", flush=True)
            lines, status = failures(launch(left, sweep.hydra)) if left and not report else ([], 0)
        elif keys:
            raise UserError(f"{self.name} runs nothing, so it takes no keys; got {' '.join(keys)}")
        self.write(self.finished(configs), len(configs), folder)
        for line in lines:
            print(f"{self.name}: {line}", file=sys.stderr)
        return status

    def sweep(self, keys: Sequence[str] = ()) -> Sweep:
        """The runs of the study, with `keys` for all of them, checked.

        Raises:
            UserError: a mistake in the keys.
        """
        always = ("threads=1", f"output_dir=results/{self.name}/runs")
        sweeps = [expand([*sweep, *always, *keys], multirun=True) for sweep in self.sweeps]
        runs = [run for sweep in sweeps for run in zip(sweep.configs, sweep.points, strict=True)]
        runs.sort(key=lambda run: self.order(run[0]))
        for config, _ in runs:
            check_combination(config)
        return replace(sweeps[0], configs=[config for config, _ in runs], points=[point for _, point in runs])

    def file_of(self, config: Config) -> Path:
        """Where the result of a run is, or will be."""
        own = config.result_file
        places = [own, *(RESULTS / folder / own.parent.name / own.name for folder in self.elsewhere)]
        return next((file for file in places if file.exists()), own)

    def unfinished(self, configs: Sequence[Config]) -> list[Config]:
        """Those of `configs` that are to be run."""
        return [config for config in configs if config.force or not self.file_of(config).exists()]

    def finished(self, configs: Sequence[Config] = ()) -> list[RunResult]:
        """The results that there are of the runs of `configs`; of a study without sweeps all those elsewhere."""
        if not self.sweeps:
            there = [folder for name in self.elsewhere if (folder := RESULTS / name).is_dir()]
            return self.select(unique_runs(there))
        return self.select(read_result(file) for config in configs if (file := self.file_of(config)).exists())

    def page(self, results: Sequence[RunResult], asked: int = 0, reading: str = "") -> str:
        """study.md: of how many runs it is made, of `asked`, what they found, then `reading`, a person's words."""
        runs = made_of(results, asked) if asked else f"{len(results)} committed runs"
        return sections(
            f"# {self.question}",
            f"Made by `python -m scripts.studies {self.name}`: {runs}. {self.about}",
            *self.body(results),
            reading,
        )

    def write(self, results: Sequence[RunResult], asked: int, folder: Path) -> None:
        """Write study.md and study.png of `results`, of `asked` runs, to `folder`, and say where.

        Raises:
            UserError: there are no results.
            OSError: a file cannot be written.
        """
        if not results:
            raise UserError(f"output_dir: no run of the study is finished there; {asked} were asked for")
        page, figure = folder / "study.md", self.draw(results)
        write_atomically(page, self.page(results, asked, reading_in(folder)).encode())
        save(figure, page.with_suffix(".png"))
        print(page)


def experiments(folder: str) -> tuple[str, ...]:
    """What is said for the sweep of all choices in a folder of configs/experiment/."""
    return (f"experiment={','.join(name for name in choices_of('experiment') if name.startswith(f'{folder}/'))}",)


def made_of(results: Sequence[RunResult], asked: int) -> str:
    """How many of the runs that were asked for a page is made of, and where they come from, for its first lines."""
    keys = ("seed", "git_commit", "hardware")
    seeds, commits, machines = (sorted({str(getattr(result, key)) for result in results}) for key in keys)
    hours = sum(result.wall_seconds for result in results) / 3600
    places = f"Commit {', '.join(map(short_commit, commits))}; {', '.join(machines)}"
    return f"{len(results)} of {asked} runs, seeds {', '.join(seeds)}, {hours:.1f} hours. {places}"


def reading_in(folder: Path) -> str:
    """What a person read in the results of a study; empty where nobody has written it."""
    file = folder / "reading.md"
    return file.read_text(encoding="utf-8") if file.exists() else ""


def known(results: Iterable[RunResult], of: Measure) -> list[float]:
    """The numbers that there are of a measure."""
    return [value for result in results if (value := of(result)) is not None]
