"""The picture of a run: it is drawn, it shows the numbers, and it copes with runs that have none."""

import io

import pytest
from PIL import Image
from result_factory import make_learned_result, make_map_result, make_result

from ellarepro.figures import draw_run, save
from ellarepro.figures.__main__ import main
from ellarepro.figures.canvas import PATHS
from ellarepro.figures.one_run import FLOOR
from ellarepro.results import write_result


def colours(figure) -> set[tuple[int, ...]]:
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    return {colour for _, colour in Image.open(stream).convert("RGB").getcolors(1 << 24)}


def rgb(path: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(PATHS[path][1][1:]))


def panel(figure, title: str):
    (found,) = [axes for axes in figure.axes if axes.get_title().startswith(title)]
    return found


def values(axes) -> list[float]:
    return sorted(value for line in axes.get_lines() for value in line.get_ydata())


@pytest.mark.parametrize("paths", [("conv",), ("f_fc", "conv"), ("f_fc", "conv", "gconv"), ("s_fc", "s_conv")])
def test_bars_of_every_layer_add_up_and_wear_their_paths_colour(paths):
    result = make_learned_result(paths=paths)
    figure = draw_run(result)
    shares = panel(figure, "relative")
    assert sorted(bar.get_height() for bar in shares.patches) == pytest.approx(
        sorted(share for layer in result.relative_effective_parameters.values() for share in layer.values())
    )
    tops = {round(bar.get_y() + bar.get_height(), 6) for bar in shares.patches[-8:]}
    assert tops == {100.0}
    assert [text.get_text() for text in shares.get_legend().get_texts()] == [PATHS[path][0] for path in paths]
    assert {rgb(path) for path in paths} <= colours(figure)


def test_precisions_leave_out_biases_and_show_the_head():
    result = make_result(
        prior_precision={"blocks.0.paths.fc.weight": 2.0, "blocks.0.paths.fc.bias": 5.0, "head.0.weight": 3.0}
    )
    precisions = panel(draw_run(result), "prior precision")
    assert values(precisions) == [2.0, 3.0]
    assert precisions.get_yscale() == "log"


def test_effective_numbers_are_summed_over_the_tensors_of_a_path():
    effective = {
        "blocks.0.paths.f_fc.theta1.weight": 2.0,
        "blocks.0.paths.f_fc.theta2.weight": 3.0,
        "blocks.0.paths.f_fc.theta1.bias": 50.0,
        "blocks.0.paths.conv.weight": FLOOR / 100,
    }
    numbers = panel(draw_run(make_result(prior_precision={}, effective_parameters=effective)), "effective number")
    assert values(numbers) == [FLOOR, 5.0]
    assert numbers.get_yscale() == "log" and "this or less" in numbers.get_ylabel()
    del effective["blocks.0.paths.conv.weight"]
    numbers = panel(draw_run(make_result(prior_precision={}, effective_parameters=effective)), "effective number")
    assert values(numbers) == [5.0] and numbers.get_ylabel() == "number"


def test_every_tensor_of_a_path_has_its_own_marker():
    figure = draw_run(make_learned_result(("s_fc", "s_conv"), prior="omega"))
    lines = panel(figure, "prior precision").get_lines()
    markers = {line.get_label(): line.get_marker() for line in lines}
    assert set(markers) == {
        *(f"S-FC {part}" for part in ("u1", "u2", "omega1", "omega2")),
        *("S-CONV u", "S-CONV omega", "head.0", "head.2"),
    }
    assert len({marker for label, marker in markers.items() if label.startswith("S-FC")}) == 4


@pytest.mark.parametrize("paths, prior", [(("f_fc", "conv", "gconv"), "theta"), (("s_fc", "s_conv"), "omega")])
def test_no_legend_covers_a_panel_or_leaves_the_picture(paths, prior):
    figure = draw_run(make_learned_result(paths, prior))
    figure.draw_without_rendering()
    panels = [axes.get_window_extent() for axes in figure.axes]
    legends = [axes.get_legend().get_window_extent() for axes in figure.axes]
    assert len(legends) == 4
    assert not any(legend.overlaps(panel) for legend in legends for panel in panels)
    assert all(legend.x0 >= 0 and legend.x1 <= figure.bbox.x1 and legend.y0 >= 0 for legend in legends)


def test_a_run_without_curvature_or_history_is_drawn_with_a_word_instead():
    result = make_result(relative_effective_parameters={}, effective_parameters={}, prior_precision={}, history={})
    assert [axes.texts[0].get_text() for axes in draw_run(result).axes] == [
        "no precisions",
        "no curvature was fitted",
        "no curvature was fitted",
        "no history",
    ]
    figure = draw_run(make_map_result())
    assert len(values(panel(figure, "prior precision"))) == 8 * 3 + 2
    assert [len(axes.texts) for axes in figure.axes] == [0, 1, 1, 0]
    assert [axes.yaxis.get_visible() for axes in figure.axes] == [True, False, False, True]


def test_the_file_is_a_png_with_something_on_it(tmp_path):
    save(draw_run(make_result(paths=("f_fc", "conv"))), tmp_path / "run.png")
    with Image.open(tmp_path / "run.png") as image:
        assert image.format == "PNG" and image.width > 1000
        assert rgb("f_fc") in {colour for _, colour in image.convert("RGB").getcolors(1 << 24)}


def test_command_line_takes_a_folder_or_a_file(tmp_path, capsys):
    path = write_result(make_result(), tmp_path / "run")
    assert main([str(path.parent)]) == 0
    assert (path.parent / "effective_parameters.png").stat().st_size > 10_000
    assert main([str(path), "--out", str(tmp_path / "other.png")]) == 0
    assert (tmp_path / "other.png").exists()
    capsys.readouterr()
    assert main([str(tmp_path / "nowhere")]) == 2
    assert "nowhere" in capsys.readouterr().err
