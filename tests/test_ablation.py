"""What paths are used for, beside a computation that goes another way."""

import pytest
import torch
from helpers import small_data, small_network
from torch import nn

from ellarepro.data.dataset import Samples
from ellarepro.evidence.evaluation import evaluate
from ellarepro.layers.anchors import AnchorSettings
from ellarepro.layers.conv import Conv
from ellarepro.layers.spatial import SpatialLayer
from ellarepro.layers.tensors import EVERYWHERE
from ellarepro.network import PATHS
from ellarepro.symmetry.ablation import path_use

TRAIN, TEST = Samples(*small_data(14, seed=1)), Samples(*small_data(11, seed=2))


def use_of(network, precision=None, train=TRAIN, batch_size=4):
    return path_use(network, precision or dict.fromkeys(network.tensor_info(), 1.0), train, TEST, batch_size)


@pytest.mark.parametrize("layer", ["f_fc_conv_gconv", "f_fc_conv", "s_fc_s_conv", "gconv"])
def test_an_ablation_is_what_a_hook_that_replaces_the_output_does(layer):
    network = small_network(layer)
    used, whole = use_of(network), evaluate(network, TEST)
    assert list(used) == [*(str(index + 1) for index in range(8)), EVERYWHERE]
    for index, block in enumerate(network.blocks):
        assert used[str(index + 1)].keys() == block.paths.keys()
        for path, module in block.paths.items():
            seen = []
            recorder = module.register_forward_hook(lambda module, inputs, output, seen=seen: seen.append(output))
            evaluate(network, TRAIN, batch_size=5)
            recorder.remove()
            mean, own = torch.cat(seen).mean(0), used[str(index + 1)][path]
            for suffix, given in {"": mean, "_constant": mean.mean((1, 2), keepdim=True)}.items():
                hook = module.register_forward_hook(lambda module, inputs, output, given=given: given.expand_as(output))
                ablated = evaluate(network, TEST)
                hook.remove()
                assert own[f"nll_change{suffix}"] == pytest.approx(ablated.nll - whole.nll, abs=1e-12)
                assert own[f"accuracy_change{suffix}"] == pytest.approx(ablated.accuracy - whole.accuracy, abs=1e-12)
    for measure in ("nll_change", "nll_change_constant"):
        assert max(abs(own[measure]) for paths in used.values() for own in paths.values()) > 1e-4


def test_an_ablation_in_all_layers_is_a_network_without_the_path():
    network = small_network("f_fc_conv")
    whole, modules = evaluate(network, TEST), [block.paths["f_fc"] for block in network.blocks]
    seen: dict[nn.Module, list[torch.Tensor]] = {module: [] for module in modules}
    record = [m.register_forward_hook(lambda own, inputs, output: seen[own].append(output)) for m in modules]
    evaluate(network, TRAIN)
    for hook in record:
        hook.remove()
    given = {module: torch.cat(outputs).mean(0) for module, outputs in seen.items()}
    for module in modules:
        module.register_forward_hook(lambda own, inputs, output: given[own].expand_as(output))
    ablated = evaluate(network, TEST)
    given = {module: mean.mean((1, 2), keepdim=True) for module, mean in given.items()}
    flattened = evaluate(network, TEST)
    used = use_of(small_network("f_fc_conv"))
    change = used[EVERYWHERE]["f_fc"]["nll_change"]
    assert change == pytest.approx(ablated.nll - whole.nll, abs=1e-12)
    assert used[EVERYWHERE]["f_fc"]["nll_change_constant"] == pytest.approx(flattened.nll - whole.nll, abs=1e-12)
    assert used[EVERYWHERE].keys() == {"f_fc", "conv"} and "prior_variance_ratio" not in used[EVERYWHERE]["conv"]
    assert all(change != pytest.approx(used[str(layer)]["f_fc"]["nll_change"], rel=0.01) for layer in range(1, 9))


def test_a_path_that_says_the_same_of_every_image_is_not_missed_and_the_only_other_one_is():
    network = small_network("f_fc_conv")
    with torch.no_grad():
        network.blocks[0].paths["f_fc"].theta1.weight.zero_()
    used = use_of(network)
    assert used["1"]["f_fc"]["nll_change"] == pytest.approx(0, abs=1e-12)
    assert abs(used["1"]["conv"]["nll_change"]) > 1e-6, "without it all images are one"


def test_a_map_of_positions_is_missed_only_when_a_constant_takes_its_place():
    network = small_network("f_fc_conv")
    places = torch.randn(1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    network.blocks[0].paths["f_fc"].register_forward_hook(lambda module, inputs, output: places.expand_as(output))
    own = use_of(network)["1"]["f_fc"]
    assert own["nll_change"] == pytest.approx(0, abs=1e-12) and abs(own["nll_change_constant"]) > 1e-4


def test_the_mean_is_that_of_the_training_data():
    network = small_network("f_fc_conv")
    moved = Samples(TRAIN.inputs + 1, TRAIN.targets)
    assert use_of(network)["1"]["conv"]["nll_change"] != pytest.approx(
        use_of(network, train=moved)["1"]["conv"]["nll_change"], rel=1e-3
    )


def layer_of(path: str, in_channels: int = 8, in_side: int = 8, out_side: int = 4) -> SpatialLayer:
    torch.manual_seed(0)
    options = {key: value for key, value in {"anchors": AnchorSettings()}.items() if key in PATHS[path].options}
    return PATHS[path](in_channels, 8, (in_side,) * 2, (out_side,) * 2, **options).double()


def smooth_images(channels: int = 8) -> torch.Tensor:
    """Neighbours that go together, as in images: what tells a sum of squares from the square of a sum."""
    steps = torch.randn(3, channels, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    return steps.cumsum(2) + 1


@pytest.mark.parametrize("path", PATHS)
def test_the_prior_variance_is_that_of_draws(path, monkeypatch):
    # Three factors of few weights each spread more than 100 draws tell.
    monkeypatch.setattr("ellarepro.layers.spatial.VARIANCE_DRAWS", 1000 if path == "dgconv" else 100)
    layer, images = layer_of(path, out_side=8), smooth_images()
    told, drawn = layer.unit_variance(images).item(), SpatialLayer.unit_variance(layer, images).item()
    assert told == pytest.approx(drawn, rel=0.1)
    assert (
        told != pytest.approx(2 * drawn, rel=0.1)
        and layer_of(path).unit_variance(images).item() == told
        or (path == "s_fc")
    )


@pytest.mark.parametrize("path", [p for p in PATHS if p not in ("f_fc", "s_fc", "sgconv", "gsconv", "dgconv")])
def test_the_prior_variance_of_a_linear_path_is_the_sum_of_its_squared_derivatives(path):
    layer, images = layer_of(path, out_side=8), smooth_images()[:1]
    names, tensors = zip(*layer.named_parameters(), strict=True)
    index = next(i for i, name in enumerate(names) if name.endswith("weight"))

    def output(weight):
        given = dict(zip(names, (*tensors[:index], weight, *tensors[index + 1 :]), strict=True))
        return torch.func.functional_call(layer, given, (images,)).flatten()

    jacobian = torch.autograd.functional.jacobian(output, tensors[index].detach()).flatten(1)
    assert layer.unit_variance(images).item() == pytest.approx(jacobian.square().sum(1).mean().item(), rel=1e-10)


def test_zero_padding_is_seen():
    images = smooth_images()
    padded = Conv(8, 8, (8, 8), (8, 8), padding_mode="zeros").double()
    told = padded.unit_variance(images).item()
    assert told == pytest.approx(SpatialLayer.unit_variance(padded, images).item(), rel=0.1)
    assert told < 0.9 * Conv(8, 8, (8, 8), (8, 8)).double().unit_variance(images).item()


def test_the_variance_ratio_does_not_depend_on_how_factors_share_their_scale():
    network = small_network("f_fc_conv_gconv")
    one = dict.fromkeys(network.tensor_info(), 1.0)
    shared = one | {"blocks.2.paths.f_fc.theta1.weight": 4.0, "blocks.2.paths.f_fc.theta2.weight": 0.25}
    ratio = use_of(network, one)["3"]["f_fc"]["prior_variance_ratio"]
    assert use_of(network, shared)["3"]["f_fc"]["prior_variance_ratio"] == pytest.approx(ratio, rel=1e-12)
    once = one | {"blocks.2.paths.f_fc.theta1.weight": 4.0}
    assert use_of(network, once)["3"]["f_fc"]["prior_variance_ratio"] == pytest.approx(ratio / 4, rel=1e-12)
    against = use_of(network, one | {"blocks.2.paths.conv.weight": 4.0})["3"]
    assert against["f_fc"]["prior_variance_ratio"] == pytest.approx(4 * ratio, rel=1e-12)
    assert against["conv"]["prior_variance_ratio"] == 1.0


def test_a_layer_without_an_equivariant_path_has_no_ratio():
    assert use_of(small_network("f_fc"))["1"]["f_fc"]["prior_variance_ratio"] is None


def test_above_a_dead_layer_nothing_has_a_variance_to_compare():
    network = small_network("f_fc_conv")
    with torch.no_grad():
        for name, p in network.blocks[0].named_parameters():
            p.fill_(-1.0 if name.endswith("bias") else 0.0)
    used = use_of(network)
    assert used["1"]["f_fc"]["prior_variance_ratio"] > 0
    assert used["2"]["f_fc"]["prior_variance_ratio"] is None and used["2"]["f_fc"]["nll_change"] == 0
