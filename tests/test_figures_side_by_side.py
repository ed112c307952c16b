"""Runs side by side: a column a run, the numbers in it, and one message for what cannot be drawn."""

from dataclasses import replace

import pytest
from matplotlib.colors import to_rgb
from PIL import Image
from result_factory import make_learned_result, make_map_result

from ellarepro.errors import UserError
from ellarepro.figures import draw_side_by_side
from ellarepro.figures.__main__ import load, main
from ellarepro.figures.canvas import PATHS
from ellarepro.figures.side_by_side import MOST_RUNS
from ellarepro.results import write_result

PALE, FULL = "f_fc 1", "f_fc 8"


def columns(figure, count: int) -> list[list]:
    """[[shares, precisions, evidence] of each run]."""
    return [figure.axes[index::count] for index in range(count)]


def other_run(name: str, **changes):
    return replace(make_learned_result(), dataset=name, run_id=f"{name}-1", **changes)


def test_a_column_a_run_with_its_shares_precisions_and_evidence():
    runs = [make_learned_result(), make_learned_result(("s_fc", "s_conv"), prior="omega")]
    figure = draw_side_by_side(runs)
    assert len(figure.axes) == 6
    for run, (shares, precisions, evidence) in zip(runs, columns(figure, 2), strict=True):
        expected = [value for layer in run.relative_effective_parameters.values() for value in layer.values()]
        assert sorted(bar.get_height() for bar in shares.patches) == pytest.approx(sorted(expected))
        assert run.dataset in shares.get_title() and f"{run.layer}, prior {run.prior}" in shares.get_title()
        assert len(precisions.get_lines()) == 16 and precisions.get_yscale() == "log"
        assert list(evidence.get_lines()[0].get_ydata()) == [2.0, 1.5, 1.4]
        assert all(list(line.get_xdata()) == [10, 20, 30] for line in precisions.get_lines())
    titles = [precisions.get_title() for _, precisions, _ in columns(figure, 2)]
    assert titles == ["learned precision of the weights", "learned precision of ω"]


def test_lines_show_the_larger_factor_and_darken_with_depth():
    run = make_learned_result()
    lines = {line.get_label(): line for line in draw_side_by_side([run]).axes[1].get_lines()}
    history = run.history["prior_precision"]
    assert list(lines[PALE].get_ydata()) == history["blocks.0.paths.f_fc.theta2.weight"]
    assert history["blocks.0.paths.f_fc.theta2.weight"] > history["blocks.0.paths.f_fc.theta1.weight"]
    assert lines[FULL].get_color() == to_rgb(PATHS["f_fc"][1])
    brightness = [sum(lines[f"f_fc {layer}"].get_color()) for layer in range(1, 9)]
    assert brightness == sorted(brightness, reverse=True) and len(set(brightness)) == 8


def test_one_legend_names_the_paths_of_all_runs_and_covers_no_panel():
    figure = draw_side_by_side(
        [make_learned_result(("f_fc", "conv", "gconv")), make_learned_result(("s_fc", "s_conv"), prior="u")]
    )
    (legend,) = figure.legends
    names = [text.get_text() for text in legend.get_texts()]
    assert names == [PATHS[path][0] for path in ("f_fc", "s_fc", "conv", "s_conv", "gconv")]
    figure.draw_without_rendering()
    assert not any(legend.get_window_extent().overlaps(axes.get_tightbbox()) for axes in figure.axes)
    titles = [axes.title.get_window_extent() for axes in figure.axes[:2]]
    assert titles[0].x1 < titles[1].x0 and max(title.y1 for title in titles) <= figure.bbox.y1


def test_runs_that_would_have_the_same_title_carry_their_digest():
    run = make_learned_result()
    twice = [axes.get_title() for axes in draw_side_by_side([run, replace(run, run_id="a-b-0123456789")]).axes[:2]]
    assert twice[0] != twice[1] and twice[1].endswith("0123456789")
    assert "0123456789" not in draw_side_by_side([replace(run, run_id="a-b-0123456789")]).axes[0].get_title()


def test_a_run_that_learned_nothing_before_its_end_says_so_and_leaves_the_others_alone():
    quiet = replace(make_learned_result(), history={"epoch": [1], "loss": [1.0]})
    (_, *said), (_, precisions, evidence) = columns(draw_side_by_side([quiet, make_learned_result()]), 2)
    assert [axes.texts[0].get_text() for axes in said] == ["nothing was learned before the end"] * 2
    assert not precisions.texts and not evidence.texts and len(precisions.get_yticks()) > 2


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(UserError, match="quadrant_digit-f_fc_conv-map.*objective=map.*objective=laplace"):
        draw_side_by_side([make_learned_result(), make_map_result()])
    with pytest.raises(UserError, match=f"got {MOST_RUNS + 1}; .*1 to {MOST_RUNS}"):
        draw_side_by_side([make_learned_result()] * (MOST_RUNS + 1))
    with pytest.raises(UserError, match="got 0"):
        draw_side_by_side([])


def test_a_folder_stands_for_its_laplace_runs_in_order(tmp_path):
    for run in (other_run("second"), other_run("first"), make_map_result()):
        write_result(run, tmp_path / run.run_id)
    assert [run.dataset for run in load([tmp_path]).values()] == ["first", "second"]
    named = [tmp_path / "second-1", tmp_path / "first-1" / "result.json"]
    assert [run.dataset for run in load(named).values()] == ["second", "first"]
    (tmp_path / "only_map").mkdir()
    with pytest.raises(UserError, match="only_map, which holds no run"):
        load([tmp_path / "only_map"])


def test_command_line_writes_a_png_or_one_message(tmp_path, capsys):
    path = write_result(make_learned_result(), tmp_path / "run")
    other = write_result(other_run("other"), tmp_path / "other")
    out = tmp_path / "figure.png"
    assert main([str(path.parent), str(other), "--out", str(out)]) == 0
    with Image.open(out) as image:
        assert image.format == "PNG" and image.width > 1000
    capsys.readouterr()
    map_run = write_result(make_map_result(), tmp_path / "map").parent
    damaged = tmp_path / "damaged.json"
    damaged.write_text("{")
    for arguments in ([path, map_run], [damaged], [tmp_path / "nowhere"], [path, damaged]):
        assert main([*map(str, arguments), "--out", str(tmp_path / "none.png")]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert main([str(path), str(other)]) == 2
    assert "--out FILE.png: is needed for several runs" in capsys.readouterr().err
    assert main([str(path), "--out", str(tmp_path / "missing" / "figure.png")]) == 2
    assert not (tmp_path / "none.png").exists()


def test_a_run_given_twice_is_drawn_once(tmp_path):
    path = write_result(make_learned_result(), tmp_path / "run")
    other = write_result(other_run("other"), tmp_path / "other")
    assert [run.dataset for run in load([path, other, path.parent]).values()] == ["quadrant_digit", "other"]
    assert main([str(path), str(path.parent)]) == 0
    assert (path.parent / "effective_parameters.png").exists(), "one run: its own figure, beside it"
