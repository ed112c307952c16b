"""What a run learned by layer and path: the right tensors in the right row, and words where there is no number."""

import csv
import io
from dataclasses import replace

import pytest
from result_factory import make_learned_result, make_map_result

from ellarepro.inspection import by_path, comma_separated, markdown, precision_curves
from ellarepro.inspection.__main__ import main
from ellarepro.network import LAYERS, build_network
from ellarepro.results import write_result
from ellarepro.shares import relative_effective_parameters


def row(result, layer: str, path: str):
    (found,) = [row for row in by_path(result) if (row.layer, row.path) == (layer, path)]
    return found


def with_precisions(result, **changes: float | None):
    """`result` with the precisions of layer 1 replaced: `theta1=` of f_fc, `conv=`, …"""
    names = {
        **{f"theta{i}": f"blocks.0.paths.f_fc.theta{i}.weight" for i in (1, 2)},
        **{path: f"blocks.0.paths.{path}.weight" for path in ("conv", "gconv")},
    }
    return replace(result, prior_precision=result.prior_precision | {names[key]: v for key, v in changes.items()})


def test_rows_come_layer_by_layer_and_the_head_last():
    result = make_learned_result(layers=11)
    by_name = replace(result, prior_precision=dict(sorted(result.prior_precision.items())))
    names = list(by_name.prior_precision)
    assert names.index("blocks.10.paths.conv.weight") < names.index("blocks.2.paths.conv.weight")
    for rows in (by_path(result), by_path(by_name)):
        layers = list(dict.fromkeys(row.layer for row in rows))
        assert layers == [*map(str, range(1, 12)), "head"]
    assert [row.path for row in by_path(result)[:3]] == ["f_fc", "conv", "f_fc"]


@pytest.mark.parametrize(
    "path, prior, parts",
    [
        ("conv", "theta", ["weight"]),
        ("f_fc", "theta", ["theta1", "theta2"]),
        ("s_fc", "u", ["u1", "u2"]),
        ("s_fc", "omega", ["u1", "u2", "omega1", "omega2"]),
        ("s_conv", "omega", ["u", "omega"]),
    ],
)
def test_a_path_has_an_entry_a_tensor_and_none_for_biases(path, prior, parts):
    result = make_learned_result((path,), prior)
    assert list(row(result, "8", path).precisions) == parts
    assert f"blocks.7.paths.{path}.{'' if path == 'conv' else parts[0] + '.'}bias" in result.prior_precision


@pytest.mark.parametrize("layer", LAYERS)
def test_effective_numbers_give_the_shares_that_runs_record(layer):
    network = build_network(layer, in_channels=1, num_classes=2, alpha=1, image_size=8)
    effective = {name: float(i) for i, (name, _) in enumerate(network.named_parameters(), start=1)}
    shares = relative_effective_parameters(effective, network.path_weights())
    result = replace(make_map_result(), effective_parameters=effective, relative_effective_parameters=shares)
    rows = by_path(replace(result, prior_precision=effective))
    assert len(rows) == 8 * len(LAYERS[layer]) + 1
    for entry in rows[:-1]:
        total = sum(other.effective for other in rows if other.layer == entry.layer)
        assert entry.share == pytest.approx(100 * entry.effective / total)
    assert rows[-1].share is None and rows[-1].effective == effective["head.0.weight"] + effective["head.2.weight"]


def test_the_larger_factor_counts_in_the_ratio_and_the_equivariant_path_has_none():
    result = with_precisions(make_learned_result(), theta1=6.0, theta2=1.0, conv=2.0)
    assert row(result, "1", "f_fc").ratio == pytest.approx(3.0)
    assert row(with_precisions(result, theta2=8.0), "1", "f_fc").ratio == pytest.approx(4.0)
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
    assert entry.precisions["omega1"] > entry.precision == 1.0
    weights = [f"blocks.2.paths.s_fc.u{i}.weight" for i in (1, 2)]
    assert entry.effective == sum(result.effective_parameters[name] for name in weights)
    assert entry.ratio is None and "so there is no ratio" in markdown(result)
    assert row(make_learned_result(("s_fc", "s_conv"), prior="u"), "3", "s_fc").ratio is not None


def test_curves_follow_the_larger_of_the_learned_precisions():
    result = make_learned_result()
    history = result.history["prior_precision"]
    history["blocks.0.paths.f_fc.theta1.weight"][:] = [1.0, 9.0, None]
    history["blocks.0.paths.f_fc.theta2.weight"][:] = [5.0, 2.0, 3.0]
    curves = precision_curves(result)
    assert curves["1", "f_fc"] == [5.0, 9.0, None]
    assert list(curves) == [(str(layer), path) for layer in range(1, 9) for path in ("f_fc", "conv")]
    omega = make_learned_result(("s_conv",), prior="omega")
    assert precision_curves(omega)["2", "s_conv"] == omega.history["prior_precision"]["blocks.1.paths.s_conv.u.omega"]
    assert precision_curves(make_map_result()) == {}


def test_the_table_names_the_run_and_shows_its_numbers():
    result = with_precisions(make_learned_result(), theta1=1200.0, theta2=45.0, conv=10.0)
    text = markdown(result)
    assert text.startswith(
        "## quadrant_digit · f_fc_conv · prior theta · laplace · budget demo · seed 1 · test accuracy 90.0 %\n"
    )
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 8 * 2 + 1
    assert lines[2] == ["1", "f_fc", "theta1 1.2e+03, theta2 4.5e+01", "1250.0", "91.8", "120.00"]
    assert lines[3][2] == "1.0e+01" and lines[-1][:2] == ["head", "head"]
    assert len({len(line) for line in text.splitlines() if line.startswith("|")}) == 1
    assert "a product is switched off" in text


def test_a_precision_that_is_not_finite_is_left_blank():
    result = with_precisions(make_learned_result(), theta1=None)
    assert "theta1 –, theta2" in markdown(result)


def test_csv_has_a_column_a_tensor():
    result = with_precisions(make_learned_result(), theta1=1200.0, conv=10.0)
    first, second, *_, head = csv.DictReader(io.StringIO(comma_separated(result)))
    assert (first["run_id"], first["layer"], first["path"]) == (result.run_id, "1", "f_fc")
    assert float(first["precision.theta1"]) == 1200 and first["precision.weight"] == ""
    assert float(second["precision.weight"]) == 10 and second["precision_ratio"] == ""
    assert float(first["precision_ratio"]) == 120 and float(first["share_percent"]) == pytest.approx(91.837, abs=1e-3)
    assert head["layer"] == "head" and head["share_percent"] == ""


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
