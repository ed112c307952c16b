"""Runs as pictures: they show the numbers, cope with runs that have none, and refuse in one message."""

import io
from dataclasses import replace

import pytest
from matplotlib.colors import to_hex, to_rgb
from PIL import Image
from result_factory import make_learned_result, make_map_result, make_result, make_tensors, with_use

from ellarepro.errors import UserError
from ellarepro.figures import draw_run, draw_side_by_side, save
from ellarepro.figures.__main__ import load, main
from ellarepro.figures.one_run import FLOOR
from ellarepro.figures.side_by_side import MOST_RUNS
from ellarepro.network import PATHS
from ellarepro.results import write_result
from ellarepro.symmetry.labels import path_colour, path_order, path_title

PALE, FULL = "F-FC 1", "F-FC 8"


def colours(figure) -> set[tuple[int, ...]]:
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    return {colour for _, colour in Image.open(stream).convert("RGB").getcolors(1 << 24)}


def rgb(path: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(path_colour(path)[1:]))


def panel(figure, title: str):
    (found,) = [axes for axes in figure.axes if axes.get_title().startswith(title)]
    return found


def values(axes) -> list[float]:
    return sorted(value for line in axes.get_lines() for value in line.get_ydata())


def columns(figure, count: int) -> list[list]:
    """[[shares, precisions, evidence] of each run]."""
    return [figure.axes[index::count] for index in range(count)]


def other_run(name: str, **changes):
    return replace(make_learned_result(), dataset=name, run_id=f"{name}-1", **changes)


def test_every_path_has_a_name_a_colour_and_a_marker_of_its_own():
    for looks in ({path_title(path) for path in PATHS}, {path_colour(path) for path in PATHS}):
        assert len(looks) == len(PATHS)
    assert len({PATHS[path].marker for path in ("fc", "f_fc", "conv", "gconv")}) == 4
    assert path_colour("linear0") == "#000000" and path_title("unheard") == "unheard"


@pytest.mark.parametrize("paths", [("f_fc", "conv"), ("f_fc", "conv", "gconv"), ("s_fc", "s_conv")])
def test_bars_of_every_layer_add_up_and_wear_their_paths_colour(paths):
    result = make_learned_result(paths=paths)
    figure = draw_run(result)
    shares = panel(figure, "relative")
    assert sorted(bar.get_height() for bar in shares.patches) == pytest.approx(
        sorted(share for layer in result.relative_effective_parameters.values() for share in layer.values())
    )
    tops = {round(bar.get_y() + bar.get_height(), 6) for bar in shares.patches[-8:]}
    assert tops == {100.0}
    assert [text.get_text() for text in shares.get_legend().get_texts()] == [path_title(path) for path in paths]
    assert {rgb(path) for path in paths} <= colours(figure)


def test_a_path_alone_has_no_bars_that_would_say_nothing():
    shares = panel(draw_run(make_learned_result(("conv",))), "relative")
    assert not shares.patches and shares.texts[0].get_text() == "CONV alone: nothing to share"


def test_precisions_are_a_point_a_path_and_leave_out_biases():
    fields = make_tensors(("f_fc", "conv"), layers=1)
    precisions = dict.fromkeys(fields, 5.0) | {
        "blocks.0.paths.f_fc.theta2.weight": 30.0,
        "blocks.0.paths.f_fc.theta1.weight": 0.2,
        "blocks.0.paths.conv.weight": 7.0,
        "head.0.weight": 3.0,
        "head.2.weight": 4.0,
    }
    axes = panel(draw_run(make_result(prior_precision=precisions, tensors=fields)), "prior precision")
    assert values(axes) == pytest.approx([3.0, 4.0, 6.0, 7.0]) and axes.get_yscale() == "log"
    assert [line.get_label() for line in axes.get_lines()] == ["F-FC", "CONV", "head"]
    assert "scale of each ReLU layer is arbitrary" in axes.get_xlabel()


def test_effective_numbers_are_summed_over_the_tensors_of_a_path():
    effective = dict.fromkeys(make_tensors(("f_fc", "conv"), layers=1), 50.0) | {
        "blocks.0.paths.f_fc.theta1.weight": 2.0,
        "blocks.0.paths.f_fc.theta2.weight": 3.0,
        "blocks.0.paths.conv.weight": FLOOR / 100,
    }
    fields = {"tensors": make_tensors(("f_fc", "conv"), layers=1), "prior_precision": {}}
    numbers = panel(draw_run(make_result(effective_parameters=effective, **fields)), "effective number")
    assert values(numbers) == [FLOOR, 5.0, 50.0, 50.0]
    assert numbers.get_yscale() == "log" and "this or less" in numbers.get_ylabel()
    effective["blocks.0.paths.conv.weight"] = 1.0
    numbers = panel(draw_run(make_result(effective_parameters=effective, **fields)), "effective number")
    assert values(numbers) == [1.0, 5.0, 50.0, 50.0] and numbers.get_ylabel() == "number"


def test_lengthscales_are_hollow_and_told_apart():
    figure = draw_run(make_learned_result(("s_fc", "s_conv"), prior="omega"))
    lines = {line.get_label(): line for line in panel(figure, "prior precision").get_lines()}
    assert list(lines) == ["S-FC", "S-FC omega1", "S-FC omega2", "S-CONV", "S-CONV omega", "head"]
    assert len({line.get_marker() for label, line in lines.items() if label.startswith("S-FC")}) == 3
    assert {label for label, line in lines.items() if line.get_fillstyle() == "none"} == {
        label for label in lines if "omega" in label
    }
    assert to_hex(lines["S-FC omega1"].get_color()).upper() == path_colour("s_fc")


@pytest.mark.parametrize("paths, prior", [(("f_fc", "conv", "gconv"), "theta"), (("s_fc", "s_conv"), "omega")])
def test_no_legend_covers_a_panel_or_leaves_the_picture(paths, prior):
    figure = draw_run(make_learned_result(paths, prior))
    figure.draw_without_rendering()
    panels = [axes.get_window_extent() for axes in figure.axes]
    legends = [axes.get_legend().get_window_extent() for axes in figure.axes]
    texts = [text.get_window_extent() for axes in figure.axes for text in (axes.title, axes.xaxis.label)]
    assert len(legends) == 4
    assert not any(legend.overlaps(panel) for legend in legends for panel in panels)
    assert all(box.x0 >= 0 and box.x1 <= figure.bbox.x1 and box.y0 >= 0 for box in [*legends, *texts])


def test_a_run_without_curvature_or_history_is_drawn_with_a_word_instead():
    result = make_result(effective_parameters={}, prior_precision={}, history={})
    assert [axes.texts[0].get_text() for axes in draw_run(result).axes] == [
        "no precisions",
        "no curvature was fitted",
        "no curvature was fitted",
        "no history",
    ]
    figure = draw_run(make_map_result())
    assert len(values(panel(figure, "prior precision"))) == 8 * 2 + 2
    assert [len(axes.texts) for axes in figure.axes] == [0, 1, 1, 0]
    assert [axes.yaxis.get_visible() for axes in figure.axes] == [True, False, False, True]


def test_the_file_is_a_png_with_something_on_it(tmp_path):
    save(draw_run(make_result(paths=("f_fc", "conv"))), tmp_path / "run.png")
    with Image.open(tmp_path / "run.png") as image:
        assert image.format == "PNG" and image.width > 1000
        assert rgb("f_fc") in {colour for _, colour in image.convert("RGB").getcolors(1 << 24)}


def test_a_column_a_run_with_its_shares_precisions_and_evidence():
    runs = [make_learned_result(), make_learned_result(("s_fc", "s_conv"), prior="omega")]
    figure = draw_side_by_side(runs)
    assert len(figure.axes) == 6
    for run, count, (shares, precisions, evidence) in zip(runs, (8, 24), columns(figure, 2), strict=True):
        expected = [value for layer in run.relative_effective_parameters.values() for value in layer.values()]
        assert sorted(bar.get_height() for bar in shares.patches) == pytest.approx(sorted(expected))
        assert len(precisions.get_lines()) == count and precisions.get_yscale() == "log"
        assert list(evidence.get_lines()[0].get_ydata()) == [2.0, 1.5, 1.4]
        assert all(list(line.get_xdata()) == [10, 20, 30] for line in precisions.get_lines())
    titles = [precisions.get_title().replace("\n", " ") for _, precisions, _ in columns(figure, 2)]
    assert titles[0] == "learned precision over that of CONV" and titles[1].startswith("learned precision of ω")
    names = [axes.get_title().splitlines()[:2] for axes in figure.axes[:2]]
    assert names == [["quadrant_digit", "F-FC+CONV, prior theta"], ["quadrant_digit", "S-FC+S-CONV, prior omega"]]


def test_lines_show_ratios_of_products_and_darken_with_depth():
    run = make_learned_result()
    lines = {line.get_label(): line for line in draw_side_by_side([run]).axes[1].get_lines()}
    history = run.history["prior_precision"]
    theta1, theta2, conv = (
        history[f"blocks.0.paths.{tensor}.weight"] for tensor in ("f_fc.theta1", "f_fc.theta2", "conv")
    )
    assert list(lines[PALE].get_ydata()) == pytest.approx(
        [one * two / over for one, two, over in zip(theta1, theta2, conv, strict=True)]
    )
    assert to_rgb(lines[FULL].get_color()) == to_rgb(path_colour("f_fc"))
    brightness = [sum(to_rgb(lines[f"F-FC {layer}"].get_color())) for layer in range(1, 9)]
    assert brightness == sorted(brightness, reverse=True) and len(set(brightness)) == 8


def test_a_run_without_an_equivariant_path_shows_precisions_and_says_that_their_scale_is_arbitrary():
    alone, ratio = (draw_side_by_side([make_learned_result(paths)]).axes[1] for paths in (("f_fc",), ("f_fc", "conv")))
    assert alone.get_title() == "learned precision of the weights" and "arbitrary" in alone.get_xlabel()
    assert ratio.get_xlabel() == "epoch"


def test_panels_of_one_quantity_have_one_scale():
    better = replace(make_learned_result(), run_id="b", history=make_learned_result().history.copy())
    better.history["neg_log_marglik_per_datum"] = [9.0, 8.0, 7.0]
    runs = [make_learned_result(), better, make_learned_result(("f_fc",))]
    (_, first, evidence), (_, second, other), (_, alone, third) = columns(draw_side_by_side(runs), 3)
    assert evidence.get_ylim() == other.get_ylim() == third.get_ylim()
    assert evidence.get_ylim()[0] < 1.4 and evidence.get_ylim()[1] > 9
    assert first.get_ylim() == second.get_ylim() != alone.get_ylim(), "ratios and precisions are not one quantity"
    assert (first.get_ylabel(), second.get_ylabel(), alone.get_ylabel()) == ("precision ratio", "", "prior precision")


def test_one_legend_names_the_paths_of_all_runs_and_covers_no_panel():
    runs = [make_learned_result(("f_fc", "conv", "gconv")), make_learned_result(("s_fc", "s_conv"), prior="u")]
    figure = draw_side_by_side(runs)
    (legend,) = figure.legends
    names = [text.get_text() for text in legend.get_texts()]
    assert names == [path_title(path) for path in ("f_fc", "s_fc", "conv", "s_conv", "gconv")]
    assert path_order("fc") < path_order("f_fc") < path_order("conv") < path_order("gconv")
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


def test_command_line_draws_one_run_beside_its_result(tmp_path, capsys):
    path = write_result(make_result(), tmp_path / "run")
    assert main([str(path.parent)]) == 0
    assert (path.parent / "effective_parameters.png").stat().st_size > 10_000
    assert main([str(path), "--out", str(tmp_path / "other.png")]) == 0
    assert (tmp_path / "other.png").exists()
    capsys.readouterr()
    assert main([str(tmp_path / "nowhere")]) == 2
    assert "nowhere" in capsys.readouterr().err


def test_command_line_draws_several_runs_or_says_why_not(tmp_path, capsys):
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


def test_the_use_of_paths_is_a_third_row_where_it_is_known():
    result = with_use(make_learned_result(), f_fc=0.0, conv=-0.5)
    figure = draw_run(result)
    assert len(figure.axes) == 6 and len(draw_run(make_learned_result()).axes) == 4
    changes = panel(figure, "change of test NLL")
    assert values(changes) == sorted([0.0, -0.5, *[0.25] * 14, *[0.75] * 16]) and changes.get_yscale() == "symlog"
    assert values(panel(figure, "prior variance")) == [1.5] * 16
    assert len(draw_run(with_use(make_map_result())).axes) == 6
