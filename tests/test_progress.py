"""How far runs are: the same words for one run and for many, in a log and on a terminal."""

import io
import re

import pytest

from ellarepro.config.compose import compose_all
from ellarepro.launching import display as displays
from ellarepro.launching.display import ProgressDisplay
from ellarepro.launching.sweep_runs import names
from ellarepro.training.progress import Moment, Progress, clock, free_share

FIRST = Moment(1, 3, 2.0, 0.5)
LATER = Moment(2, 3, 1.0, 0.75, 1.25, ("F-FC", 12.4))
LAST = Moment(3, 3, 0.5, 0.9, 1.25, ("F-FC", 12.4))


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_moment_in_words():
    assert str(FIRST) == "epoch 1/3  accuracy 50.0%  -marglik -"
    assert str(LATER) == "epoch 2/3  accuracy 75.0%  -marglik 1.250  F-FC 12%"


def test_the_free_share_is_the_mean_over_layers_of_paths_that_break_symmetry():
    assert free_share({"1": {"f_fc": 90.0, "conv": 10.0}, "2": {"f_fc": 20.0, "conv": 80.0}}) == ("F-FC", 55.0)
    assert free_share({"1": {"f_fc": 5.0, "conv": 35.0, "gconv": 60.0}}) == ("F-FC", 5.0)
    for without in ({}, {"1": {"fc": 100.0}}, {"1": {"conv": 40.0, "gconv": 60.0}}):
        assert free_share(without) is None


def test_a_log_has_the_first_and_the_last_epoch_and_a_terminal_all():
    for stream, wanted in ((io.StringIO(), ["1", "3"]), (Terminal(), ["1", "2", "3"])):
        progress = Progress(stream=stream)
        for moment in (FIRST, LATER, LAST):
            progress.update(moment)
        assert re.findall(r"epoch (\d)/3", stream.getvalue()) == wanted and "loss 0.500" in stream.getvalue()


def test_durations():
    assert [clock(5), clock(65), clock(7265)] == ["0:05", "1:05", "2:01:05"]


def test_a_log_has_plain_lines_each_with_the_name_of_its_run(monkeypatch):
    stream, now = io.StringIO(), [0.0]
    monkeypatch.setattr(displays.time, "monotonic", lambda: now[0])
    with ProgressDisplay(["digit CONV", "digit FC"], stream, every=10.0) as display:
        for index, event in ((0, None), (0, "a line"), (0, FIRST), (0, LATER), (1, FIRST)):
            display.show(index, event)
        now[0] = 11.0
        display.show(0, LATER)
        display.show(0, LAST)
        display.end(0)
    legend, lines = stream.getvalue().splitlines()[:2], stream.getvalue().splitlines()[2:]
    assert "marginal likelihood" in legend[0]
    assert lines == [
        "a line",
        f"digit CONV  {FIRST}",
        f"digit FC  {FIRST}",
        f"digit CONV  {LATER}",
        f"digit CONV  {LAST}",
    ]


def test_a_terminal_has_one_line_a_run_that_is_under_way():
    display = ProgressDisplay(["digit CONV", "digit FC", "position FC"], Terminal())
    display.show(0, FIRST)
    display.show(1, None)
    display.show(0, LATER)
    assert rows(display) == [["digit CONV", *LATER.parts()], ["digit FC", "starts"], ["1 more to come"]]
    display.end(0)
    assert rows(display) == [["digit FC", "starts"], ["1 more to come"]]
    with display:
        display.show(1, "what a run says")
    shown = display.stream.getvalue()
    assert "what a run says" in shown and "digit FC" in shown and "\x1b[" in shown


def rows(display: ProgressDisplay) -> list[list[str]]:
    return [list(filter(None, row)) for row in zip(*(list(c.cells) for c in display._lines().columns), strict=True)]


FC = ["dataset=quadrant_digit", "layer=fc"]


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ([[], ["layer=f_fc_conv"]], ["quadrant_digit FC", "quadrant_digit F-FC+CONV"]),
        ([["seed=1"], ["seed=2"]], ["quadrant_digit FC seed 1", "quadrant_digit FC seed 2"]),
        ([[], ["objective=map"]], ["quadrant_digit FC laplace", "quadrant_digit FC map"]),
    ],
)
def test_runs_are_named_by_what_they_differ_in(changes, wanted):
    assert names(compose_all([[*FC, *change] for change in changes])) == wanted


def test_runs_that_differ_in_nothing_that_has_a_name_end_in_their_digits():
    one, other = names(compose_all([FC, [*FC, "epochs=7"]]))
    assert one != other and one.startswith("quadrant_digit FC ")
