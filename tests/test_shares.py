"""The published measure: computed from a run's numbers by hand, and in every committed result."""

import json
from pathlib import Path
from statistics import fmean

import pytest
import torch
from result_factory import make_learned_result, make_map_result

from ellarepro.errors import UserError
from ellarepro.layers.conv import Conv
from ellarepro.layers.tensors import BIAS, LENGTHSCALE, WEIGHT, TensorInfo
from ellarepro.network import LAYERS, build_network
from ellarepro.results import read_result, read_results, write_result
from ellarepro.settings.parts import AnchorSettings
from ellarepro.symmetry.shares import effective_share, relative_effective_parameters

RESULTS = Path(__file__).parents[1] / "results"
COMMITTED = sorted(RESULTS.glob("table*/*/result.json"))

# The stage table and the entries of each weight tensor, (c, d) channels and (x, y) positions in and out, once more.
WIDTHS, SIDES = (1, 2, 2, 4, 4, 8, 8, 16), (32, 32, 16, 16, 8, 8, 4, 2, 1)
ENTRIES = {
    "fc": lambda c, d, x, y: {"weight": d * y * c * x},
    "conv": lambda c, d, x, y: {"weight": d * c * 9},
    "f_fc": lambda c, d, x, y: {"theta1.weight": d * c * y, "theta2.weight": d * c * x},
    "s_fc": lambda c, d, x, y: {"u1.weight": d * c * max(y // 2, 1), "u2.weight": d * c * x // 2},
    "s_conv": lambda c, d, x, y: {"u.weight": d * c * 4},
    "gconv": lambda c, d, x, y: {"weight": d * c * 9 // 4},
}


def by_hand(record: dict, relative: bool = True) -> dict[str, dict[str, float]]:
    """The published measure, or the share of the raw effective number, from effective numbers and sizes."""
    width = record["config"]["alpha"] * (4 if "gconv" in record["layer"] else 1)
    channels = [3 if "cifar10" in record["dataset"] else 1, *(width * units for units in WIDTHS)]
    result = {}
    for index in range(8):
        sizes = (*channels[index : index + 2], SIDES[index] ** 2, SIDES[index + 1] ** 2)
        values = {}
        for path in LAYERS[record["layer"]]:
            entries = ENTRIES[path](*sizes)
            gamma = [record["effective_parameters"][f"blocks.{index}.paths.{path}.{name}"] for name in entries]
            ratios = [own / size for own, size in zip(gamma, entries.values(), strict=True)]
            values[path] = fmean(ratios) if relative else sum(gamma)
        total = sum(values.values()) or 1.0
        result[str(index + 1)] = {path: 100 * value / total for path, value in values.items()}
    return result


def difference(one: dict, other: dict) -> float:
    """Largest difference of two {layer: {path: percent}}, in percentage points."""
    return max(abs(one[layer][path] - other[layer][path]) for layer in one for path in one[layer])


def over_layers(record: dict, path: str) -> tuple[int, int, int]:
    """Mean, smallest and largest share of `path`, in percent, rounded."""
    shares = [paths[path] for paths in record["relative_effective_parameters"].values()]
    return round(fmean(shares)), round(min(shares)), round(max(shares))


@pytest.mark.parametrize("file", COMMITTED, ids=lambda file: file.parent.name)
def test_committed_results_hold_the_published_measure(file):
    record = json.loads(file.read_text())
    assert sum(entry["size"] for entry in record["tensors"].values()) == record["n_params"]
    if record["objective"] == "map":
        assert record["relative_effective_parameters"] == record["effective_share"] == {}
        return
    assert difference(by_hand(record), record["relative_effective_parameters"]) < 1e-9
    assert difference(by_hand(record, relative=False), record["effective_share"]) < 1e-9
    if len(LAYERS[record["layer"]]) > 1 and any(sum(paths.values()) for paths in record["effective_share"].values()):
        assert difference(by_hand(record, relative=False), record["relative_effective_parameters"]) > 20, "the control"


@pytest.mark.parametrize(
    ("run", "shares"),
    [
        ("table3/cifar10_jpeg-f_fc_conv_gconv", {"f_fc": (3, 0, 10), "conv": (47, 31, 65), "gconv": (50, 31, 69)}),
        ("table3/mnist-f_fc_conv_gconv", {"f_fc": (11, 1, 45), "conv": (46, 30, 72), "gconv": (44, 8, 70)}),
        (
            "table3/rotated_cifar10_jpeg-f_fc_conv_gconv",
            {"f_fc": (6, 0, 25), "conv": (45, 27, 81), "gconv": (50, 8, 72)},
        ),
        ("table3/rotated_mnist-f_fc_conv_gconv", {"f_fc": (6, 0, 17), "conv": (39, 30, 47), "gconv": (56, 36, 63)}),
        ("table2/cifar10_jpeg-f_fc_conv", {"conv": (92, 73, 100)}),
    ],
)
def test_the_numbers_that_readings_speak_of(run, shares):
    records = [json.loads(file.read_text()) for file in COMMITTED if f"/{run}-laplace-s711-" in str(file)]
    (record,) = (record for record in records if record["budget"] == "cpu")
    assert {path: over_layers(record, path) for path in shares} == shares


def test_shares_are_of_weights_and_a_layer_without_any_has_none():
    tensors = {
        "a": TensorInfo("1", "f_fc", "theta1", WEIGHT, 10),
        "b": TensorInfo("1", "f_fc", "theta2", WEIGHT, 1000),
        "c": TensorInfo("1", "f_fc", "bias", BIAS, 1),
        "d": TensorInfo("1", "conv", "weight", WEIGHT, 20),
        "e": TensorInfo("1", "conv", "omega", LENGTHSCALE, 1),
        "f": TensorInfo("head", "linear0", "weight", WEIGHT, 1),
        "g": TensorInfo("2", "conv", "weight", WEIGHT, 5),
    }
    effective = {"a": 6.0, "b": 200.0, "c": 1.0, "d": 12.0, "e": 1.0, "f": 1.0, "g": 0.0}
    # (0.6 + 0.2) / 2 of F-FC beside 0.6 of CONV.
    relative = relative_effective_parameters(effective, tensors)
    assert relative == {"1": pytest.approx({"f_fc": 40.0, "conv": 60.0}), "2": {"conv": 0.0}}
    assert effective_share(effective, tensors)["1"] == pytest.approx({"f_fc": 20600 / 218, "conv": 1200 / 218})
    assert relative_effective_parameters({}, tensors) == {}


@pytest.mark.parametrize("layer", LAYERS)
def test_every_tensor_of_every_network_has_a_place(layer):
    learned = AnchorSettings(learn_omega=True)
    network = build_network(layer, in_channels=1, num_classes=3, alpha=1, image_size=8, anchors=learned)
    tensors, roles = network.tensor_info(), {"bias": BIAS, "omega": LENGTHSCALE, "weight": WEIGHT}
    assert list(tensors) == [name for name, _ in network.named_parameters()]
    for name, p in network.named_parameters():
        assert (tensors[name].size, tensors[name].role) == (p.numel(), roles[name.rpartition(".")[2]])
    own = [(tensor.layer, tensor.path, tensor.part) for tensor in tensors.values() if tensor.role != BIAS]
    assert len(set(own)) == len(own), "a layer calls no two of its tensors the same"


def test_a_layer_that_says_nothing_of_a_tensor_is_refused():
    class Scaled(Conv):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            self.scale = torch.nn.Parameter(torch.ones(1))

    with pytest.raises(NotImplementedError, match="Scaled.parts has no entry for scale"):
        Scaled(1, 2, (4, 4), (4, 4)).tensor_info("1", "conv")


@pytest.mark.parametrize("make", [make_learned_result, make_map_result])
def test_what_is_written_is_what_is_read(make, tmp_path):
    write_result(make(), tmp_path)
    assert read_results(tmp_path) == [make()]


def test_an_entry_that_is_no_tensor_is_one_message(tmp_path):
    file = tmp_path / "result.json"
    file.write_text(COMMITTED[0].read_text().replace('"role"', '"rule"', 1))
    with pytest.raises(UserError, match=f"{file}: tensors must give layer, path, part"):
        read_result(file)
