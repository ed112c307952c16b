"""One thread for all tests: they are small, and faster for it on a shared machine."""

import pytest
import torch
from matplotlib.figure import Figure
from smoke_runs import found, quiet

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def wanted(tmp_path_factory) -> dict:
    """What a run that nothing happens to finds."""
    folder = tmp_path_factory.mktemp("whole")
    quiet(folder)
    return found(folder)


@pytest.fixture(autouse=True)
def no_figure_of_a_run(monkeypatch):
    """Most of the time of a run of seconds is its figure, which the tests of figures and of the command look at."""
    monkeypatch.setattr("ellarepro.run.draw_run", lambda result: Figure(figsize=(1, 1)))
