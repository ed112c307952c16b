"""What a run learned by layer and path: the right tensors in the right row, and words where there is no number."""

import csv
import io
from dataclasses import replace

import pytest
from result_factory import make_learned_result, make_map_result, make_result, with_use

from ellarepro.inspection import comma_separated, markdown, path_rows, precision_curves, ratio_curves
from ellarepro.inspection.__main__ import main
from ellarepro.layers.tensors import EVERYWHERE, LENGTHSCALE
from ellarepro.network import LAYERS, build_network
from ellarepro.results import write_result

FACTORS = [f"blocks.0.paths.f_fc.theta{i}.weight" for i in (1, 2)]


def row(result, layer: str, path: str):
    (found,) = [row for row in path_rows(result) if (row.layer, row.path) == (layer, path)]
    return found


def with_precisions(result, **changes: float | None):
    """`result` with the precisions of layer 1 replaced: `theta1=` of f_fc, `conv=`, …"""
    names = {
        **{f"theta{i}": f"blocks.0.paths.f_fc.theta{i}.weight" for i in (1, 2)},
        **{path: f"blocks.0.paths.{path}.weight" for path in ("conv", "gconv")},
    }
    return replace(result, prior_precision=result.prior_precision | {names[key]: v for key, v in changes.items()})


def test_rows_come_layer_by_layer_and_the_head_last():
    rows = path_rows(make_learned_result(layers=11))
    assert list(dict.fromkeys(row.layer for row in rows)) == [*map(str, range(1, 12)), "head"]
    assert [row.path for row in rows[:3]] == ["f_fc", "conv", "f_fc"]
    assert [row.path for row in rows[-2:]] == ["linear0", "linear2"]


@pytest.mark.parametrize(
    "path, prior, part, lengthscales",
    [
        ("conv", "theta", "weight", []),
        ("f_fc", "theta", "theta1·theta2", []),
        ("s_fc", "u", "u1·u2", []),
        ("s_fc", "omega", "u1·u2", ["omega1", "omega2"]),
        ("s_conv", "omega", "u", ["omega"]),
    ],
)
def test_a_path_has_its_weights_and_lengthscales_and_no_bias(path, prior, part, lengthscales):
    result = make_learned_result((path,), prior)
    found = row(result, "8", path)
    assert (found.part, list(found.lengthscales)) == (part, lengthscales)
    assert sum(name.startswith(f"blocks.7.paths.{path}.") and "bias" in name for name in result.prior_precision) == 1


@pytest.mark.parametrize("layer", LAYERS)
def test_rows_of_every_network_add_up_its_weights(layer):
    network = build_network(layer, in_channels=1, num_classes=2, alpha=1, image_size=8)
    effective = {name: float(i) for i, (name, _) in enumerate(network.named_parameters(), start=1)}
    fields = {"prior_precision": effective, "effective_parameters": effective, "tensors": network.tensor_info()}
    rows = path_rows(make_result(**fields))
    assert len(rows) == 8 * len(LAYERS[layer]) + 2
    weights = sum(number for name, number in effective.items() if not name.endswith("bias"))
    assert sum(entry.effective for entry in rows) == pytest.approx(weights)
    for entry in rows[:-2]:
        total = sum(other.effective for other in rows if other.layer == entry.layer)
        assert entry.share == pytest.approx(100 * entry.effective / total)
    assert [entry.share for entry in rows[-2:]] == [entry.relative for entry in rows[-2:]] == [None, None]


def test_the_product_of_the_factors_counts_in_the_ratio_whatever_scale_they_trade():
    result = with_precisions(make_learned_result(), theta1=6.0, theta2=2.0, conv=3.0)
    assert (row(result, "1", "f_fc").precision, row(result, "1", "f_fc").ratio) == (12.0, pytest.approx(4.0))
    traded = with_precisions(result, theta1=0.06, theta2=200.0)
    assert row(traded, "1", "f_fc").ratio == pytest.approx(4.0), "one factor's ratio went from 2 to 0.02"
    assert row(with_precisions(result, theta2=4.0), "1", "f_fc").ratio == pytest.approx(8.0), "the control"
    assert row(result, "1", "conv").ratio is None
    assert row(make_learned_result(("f_fc",)), "1", "f_fc").ratio is None
    assert row(with_precisions(result, theta2=None), "1", "f_fc").ratio is None


def test_rotations_are_measured_against_translations():
    precisions = {"theta1": 1.0, "theta2": 8.0, "gconv": 1.0}
    result = with_precisions(make_learned_result(("f_fc", "conv", "gconv")), conv=2.0, **precisions)
    assert [row(result, "1", path).ratio for path in ("f_fc", "conv", "gconv")] == [4.0, None, 0.5]
    alone = with_precisions(make_learned_result(("f_fc", "gconv")), **precisions)
    assert row(alone, "1", "f_fc").ratio == 8.0


def test_omega_is_listed_but_counts_as_no_weight():
    result = make_learned_result(("s_fc", "s_conv"), prior="omega")
    entry = row(result, "3", "s_fc")
    assert entry.lengthscales["omega1"] > entry.precision == 1.0
    weights = [f"blocks.2.paths.s_fc.u{i}.weight" for i in (1, 2)]
    assert entry.effective == sum(result.effective_parameters[name] for name in weights)
    assert entry.ratio is None and "so there is no ratio" in markdown(result)
    assert row(make_learned_result(("s_fc", "s_conv"), prior="u"), "3", "s_fc").ratio is not None
    learned_too = {name: 3.0 * value for name, value in result.prior_precision.items()}
    assert row(replace(result, prior_precision=learned_too), "3", "s_fc").ratio == pytest.approx(3.0)


def test_curves_are_of_products_and_of_their_ratio_to_the_equivariant_path():
    result = make_learned_result()
    history = result.history["prior_precision"]
    history[FACTORS[0]][:], history[FACTORS[1]][:] = [1.0, 9.0, None], [5.0, 2.0, 3.0]
    history["blocks.0.paths.conv.weight"][:] = [10.0, 2.0, 1.0]
    curves = precision_curves(result)
    assert curves["1", "f_fc", "theta1·theta2"] == [5.0, 18.0, None]
    assert [key[:2] for key in curves] == [(str(layer), path) for layer in range(1, 9) for path in ("f_fc", "conv")]
    ratios = ratio_curves(result)
    assert ratios["1", "f_fc", "theta1·theta2"] == [0.5, 9.0, None]
    assert {key[1] for key in ratios} == {"f_fc"}
    assert ratio_curves(make_learned_result(("f_fc",))) == precision_curves(make_map_result()) == {}


def test_every_lengthscale_has_a_curve():
    omega = make_learned_result(("s_fc", "s_conv"), prior="omega")
    curves = precision_curves(omega, LENGTHSCALE)
    history = omega.history["prior_precision"]
    assert curves["2", "s_conv", "omega"] == history["blocks.1.paths.s_conv.u.omega"]
    assert [part for layer, path, part in curves if (layer, path) == ("2", "s_fc")] == ["omega1", "omega2"]


def test_the_table_names_the_run_and_shows_its_numbers():
    result = with_precisions(make_learned_result(), theta1=1200.0, theta2=45.0, conv=10.0)
    numbers = dict.fromkeys(FACTORS, 500.0) | {"blocks.0.paths.conv.weight": 90.0}
    result = make_learned_result(
        prior_precision=result.prior_precision, effective_parameters=result.effective_parameters | numbers
    )
    text = markdown(result)
    assert text.startswith(
        "## quadrant_digit · F-FC+CONV · prior theta · laplace · budget demo · seed 1 · test accuracy 90.0%\n"
    )
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 8 * 2 + 2
    # Relative: 500 of 4,000 and of 8,000 weights are 9.4%, 90 of 360 are 25%; share: 1,000 of 1,090.
    assert lines[2] == ["1", "F-FC", "theta1·theta2 5.4e+04", "5400.00", "1000.0", "27.3", "91.7"]
    assert lines[3][2:] == ["weight 1.0e+01", "–", "90.0", "72.7", "8.3"] and lines[-1][:2] == ["head", "linear2"]
    assert len({len(line) for line in text.splitlines() if line.startswith("|")}) == 1
    assert "factors can trade scale" in text and "It favours paths with few weights" in text


def test_a_precision_that_is_not_finite_is_left_blank():
    result = with_precisions(make_learned_result(), theta1=None)
    assert "theta1·theta2 –" in markdown(result)


def test_csv_has_a_line_a_path_and_a_column_a_lengthscale():
    result = with_precisions(make_learned_result(), theta1=1200.0, theta2=45.0, conv=10.0)
    first, second, *_, head = csv.DictReader(io.StringIO(comma_separated(result)))
    assert (first["run_id"], first["layer"], first["path"]) == (result.run_id, "1", "f_fc")
    assert (float(first["precision"]), float(second["precision"])) == (54000, 10)
    assert float(first["precision_ratio"]) == 5400 and second["precision_ratio"] == ""
    for key, measure in (("share", result.effective_share), ("relative", result.relative_effective_parameters)):
        assert float(first[f"{key}_percent"]) == pytest.approx(measure["1"]["f_fc"], abs=1e-3)
        assert head[f"{key}_percent"] == ""
    omega = next(csv.DictReader(io.StringIO(comma_separated(make_learned_result(("s_fc",), prior="omega")))))
    assert float(omega["precision.omega2"]) > 1 and "precision.omega1" in omega


@pytest.mark.parametrize("form", ["md", "csv"])
def test_a_map_run_is_shown_with_a_word_about_what_is_missing(form, tmp_path, capsys):
    write_result(make_map_result(), tmp_path)
    assert main([str(tmp_path), "--format", form]) == 0
    shown = capsys.readouterr()
    assert "fixed, not learned" in (shown.out if form == "md" else shown.err)
    assert len(list(csv.reader(io.StringIO(shown.out)))) > 17
    write_result(make_learned_result(), tmp_path)
    assert main([str(tmp_path), "--format", form]) == 0
    assert "fixed, not learned" not in "".join(capsys.readouterr())


def test_a_users_mistake_is_one_message(tmp_path, capsys):
    path = write_result(make_learned_result(), tmp_path / "run")
    assert main([str(path)]) == 0
    capsys.readouterr()
    path.write_text(path.read_text()[:100])
    for argument in (path, tmp_path / "nowhere", tmp_path):
        assert main([str(argument)]) == 2
        shown = capsys.readouterr()
        assert shown.out == "" and shown.err.count("\n") == 1 and str(argument) in shown.err


def test_what_paths_are_used_for_is_a_table_of_its_own():
    plain, used = make_learned_result(), with_use(make_learned_result(), conv=-0.5)
    assert "NLL change" not in markdown(plain)
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in markdown(used).splitlines() if "|" in line]
    assert ["1", "F-FC", "+0.250", "-12.5", "+0.750", "-25.0", "1.50"] in lines
    assert ["1", "CONV", "-0.500", "-12.5", "+0.750", "-25.0", "1.50"] in lines
    assert lines.count(lines[-1]) == 1 and lines[-1] == ["all", "CONV", "+1.500", "-50.0", "+2.500", "–", "–"]
    assert len([line for line in lines if line[0] in (*"12345678", "all")]) == 2 * (8 * 2) + 2, "the head has none"
    assert "NLL change" in markdown(with_use(make_map_result())), "MAP has a use, too"
    first, second, *_, head = csv.DictReader(io.StringIO(comma_separated(used)))
    assert (float(first["nll_change"]), float(second["nll_change"]), head["nll_change"]) == (0.25, -0.5, "")
    assert (float(first["accuracy_change"]), float(first["prior_variance_ratio"])) == (-0.125, 1.5)
    assert (float(first["nll_change_constant"]), float(first["accuracy_change_constant"])) == (0.75, -0.25)


def test_a_layer_without_an_equivariant_path_has_no_variance_ratio():
    used = with_use(make_learned_result(("f_fc",)))
    for layer in used.path_use.keys() - {EVERYWHERE}:
        used.path_use[layer]["f_fc"]["prior_variance_ratio"] = None
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in markdown(used).splitlines() if "|" in line]
    assert ["1", "F-FC", "+0.250", "-12.5", "+0.750", "-25.0", "–"] in lines
