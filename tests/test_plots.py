"""The picture of a run: it is drawn, it shows the numbers, and it copes with runs that have none."""

import io

import pytest
from PIL import Image
from result_factory import make_result

from ellarepro.plots import PATHS, draw, main, plot_effective_parameters
from ellarepro.results import write_result


def colours(figure) -> set[tuple[int, ...]]:
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    return {colour for _, colour in Image.open(stream).convert("RGB").getcolors(1 << 24)}


def rgb(path: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(PATHS[path][1][1:]))


@pytest.mark.parametrize("paths", [("conv",), ("f_fc", "conv"), ("f_fc", "conv", "gconv")])
def test_bars_of_every_layer_add_up_and_wear_their_paths_colour(paths):
    figure = draw(make_result(paths=paths))
    bars = figure.axes[0].patches
    assert len(bars) == 8 * len(paths)
    assert sum(bar.get_height() for bar in bars) == pytest.approx(800)
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == [PATHS[path][0] for path in paths]
    assert {rgb(path) for path in paths} <= colours(figure)


def test_precisions_leave_out_biases_and_show_the_head():
    result = make_result(
        prior_precision={"blocks.0.paths.fc.weight": 2.0, "blocks.0.paths.fc.bias": 5.0, "head.0.weight": 3.0}
    )
    lines = draw(result).axes[1].get_lines()
    assert sorted(value for line in lines for value in line.get_ydata()) == [2.0, 3.0]
    assert draw(result).axes[1].get_yscale() == "log"


def test_a_run_without_curvature_or_history_is_drawn_with_a_word_instead():
    result = make_result(relative_effective_parameters={}, prior_precision={}, history={})
    assert [axes.texts[0].get_text() for axes in draw(result).axes] == [
        "no curvature was fitted",
        "no precisions",
        "no history",
    ]


def test_the_file_is_a_png_with_something_on_it(tmp_path):
    plot_effective_parameters(make_result(paths=("f_fc", "conv")), tmp_path / "run.png")
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
