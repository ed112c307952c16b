"""Whole networks of PyTorch's own layers: exact where it can be, the same in every mode, refused where it cannot."""

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_close, parameter_slices, perturb_biases, relative_error
from torch import Tensor, nn

from ellarepro.curvature.checks import check_gradients
from ellarepro.curvature.exact import exact_ggn
from ellarepro.curvature.ggn import GGN
from ellarepro.curvature.interop.kron import BlockKron
from ellarepro.curvature.structures import factor_bytes

STRUCTURES = ["kron", "kron_blockwise", "diag"]


class Residual(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.first, self.second = (nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(2))
        self.norm1, self.norm2 = (nn.GroupNorm(2, channels) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.norm2(self.second(F.relu(self.norm1(self.first(x)), inplace=True))), inplace=True)


class Reader(nn.Module):
    """Words and places, one block of self-attention, and a head."""

    def __init__(self, words: int = 7, places: int = 5, width: int = 4):
        super().__init__()
        self.word, self.place = nn.Embedding(words, width, padding_idx=0), nn.Embedding(places, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 6), nn.Linear(6, width)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(width, 3)

    def forward(self, words: Tensor) -> Tensor:
        places = torch.arange(words.shape[1]).expand_as(words)
        x = self.word(words) + self.place(places)
        q, k, v = self.qkv(self.norm1(x)).chunk(3, -1)
        x = x + self.drop(self.out((q @ k.mT / 2).softmax(-1) @ v))
        x = x + self.down(F.gelu(self.up(self.norm2(x))))
        return self.head(x.mean(1))


def resnet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2, padding=1),
        Residual(4),
        nn.Conv2d(4, 4, 3, groups=4, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    )


def sequence_network() -> nn.Module:
    return nn.Sequential(nn.Conv1d(1, 4, 3, padding="same"), nn.Tanh(), nn.Flatten(), nn.Dropout(0.5), nn.Linear(36, 3))


NETWORKS = {
    "resnet": (resnet, lambda: torch.randn(5, 1, 6, 6, dtype=torch.float64)),
    "reader": (Reader, lambda: torch.randint(7, (5, 5))),
    "sequences": (sequence_network, lambda: torch.randn(5, 1, 9, dtype=torch.float64)),
}


@pytest.fixture(params=NETWORKS)
def case(request):
    torch.manual_seed(0)
    make, data = NETWORKS[request.param]
    model = perturb_biases(make()).double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return model.eval(), data()


def blocks(model, x, structure):
    ggn = GGN(model, structure, tolerance=0)
    ggn.update(x)
    return ggn.blocks(len(x))


def test_the_diagonal_and_the_blocks_of_biases_and_scales_are_exact(case):
    model, x = case
    exact = exact_ggn(model, x)
    assert_close(BlockKron.from_blocks(blocks(model, x, "diag")).diag(), exact.diagonal())
    affine = [
        f"{n}.weight" for n, m in model.named_modules() if isinstance(m, nn.LayerNorm | nn.GroupNorm | nn.BatchNorm2d)
    ]
    for structure in ("kron", "kron_blockwise"):
        found = blocks(model, x, structure)
        for name, part in parameter_slices(model).items():
            if name.endswith("bias") or name in affine:
                assert_close(found[name].factors[0][0], exact[part, part], 1e-9)
    kron = BlockKron.from_blocks(found)
    assert relative_error(kron.diag(), exact.diagonal()) > 0.01, "the control: the diagonal of kron"


@pytest.mark.parametrize("structure", STRUCTURES)
def test_training_mode_plays_no_part_and_stays(case, structure):
    model, x = case
    wanted, exact = BlockKron.from_blocks(blocks(model, x, structure)).to_matrix(), exact_ggn(model, x)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()
    frozen = next(model.children()).eval()
    assert_close(BlockKron.from_blocks(blocks(model, x, structure)).to_matrix(), wanted)
    assert_close(exact_ggn(model, x), exact)
    assert model.training and not frozen.training, "each module is in the mode that it was in"
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), f"{name} has changed"
    assert relative_error(model(x), model.eval()(x)) > 0.01, "the control: in training it would"


def test_the_mode_comes_back_after_an_error():
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).train()
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        GGN(model).update(torch.zeros(4, 5))
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("structure", STRUCTURES)
def test_the_forecast_is_what_the_factors_take(case, structure):
    model, x = case[0].float(), case[1].float() if case[1].is_floating_point() else case[1]
    assert GGN(model.train(), structure).forecast(x).total == factor_bytes(blocks(model, x, structure))
    for p in list(model.parameters())[::2]:
        p.requires_grad_(False)
    assert GGN(model, structure).forecast(x).total == factor_bytes(blocks(model, x, structure))


@pytest.mark.parametrize("structure", STRUCTURES)
def test_the_sum_over_batches_does_not_depend_on_their_size(case, structure):
    model, x = case
    ggn = GGN(model, structure, tolerance=0)
    for batch in x.split(2):
        ggn.update(batch)
    whole = BlockKron.from_blocks(blocks(model, x, structure)).to_matrix()
    assert_close(BlockKron.from_blocks(ggn.blocks(5)).to_matrix(), whole)


def test_an_activation_may_overwrite_the_output_of_an_embedding():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(5, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(6, 3)).double()
    words = torch.randint(5, (4, 2))
    assert_close(BlockKron.from_blocks(blocks(model, words, "diag")).diag(), exact_ggn(model, words).diagonal())


class Flat(nn.Module):
    """Positions folded into the samples."""

    def __init__(self):
        super().__init__()
        self.inner, self.head = nn.Linear(3, 4), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.inner(x.flatten(0, 1)).view(len(x), 8))


class Keyword(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(input=x)


REFUSED = {
    "positions folded into the samples": (
        Flat(),
        (5, 2, 3),
        r"layer inner has an input of shape \(10, 3\) for a batch of 5",
    ),
    "a layer called by keyword": (Keyword(), (5, 3), "layer head is called by keyword"),
    "batch statistics": (
        nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, affine=False, track_running_stats=False)),
        (5, 3),
        "BatchNorm1d 1 has no running statistics",
    ),
    "a norm that changes the weights": (
        nn.Sequential(nn.Embedding(3, 4, max_norm=1.0)),
        (5, 3),
        "must have max_norm=None",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_rule_covers_is_refused(name):
    model, shape, said = REFUSED[name]
    with pytest.raises(ValueError, match=said):
        GGN(model).update(torch.zeros(shape))


class TiedByHand(nn.Module):
    """Words in and words out by one matrix, of which only the first use is a layer's call."""

    def __init__(self):
        super().__init__()
        self.word, self.inner = nn.Embedding(7, 4), nn.Linear(4, 4)

    def forward(self, words: Tensor) -> Tensor:
        return self.inner(self.word(words)).tanh().mean(1) @ self.word.weight.T


def hooked() -> nn.Module:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))
    model[0].register_forward_pre_hook(lambda module, args: (2 * args[0],))
    model[2].register_forward_hook(lambda module, args, output: 3 * output)
    return model


def assigned() -> nn.Module:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))
    model[2].forward = lambda x: 2 * F.linear(x, model[2].weight, model[2].bias)
    return model


def test_gradients_that_the_rules_do_not_account_for_are_found(case):
    check_gradients(case[0].train(), case[1][:2])
    check_gradients(case[0].float(), case[1][:2].float() if case[1].is_floating_point() else case[1][:2])
    assert case[0].training
    with pytest.raises(ValueError, match="the gradient of word.weight by .*outside of the layer's own call"):
        check_gradients(TiedByHand(), torch.tensor([[1, 2], [3, 4]]))
    for model in (hooked(), assigned()):
        with pytest.raises(ValueError, match="the gradient of 2.weight .*does a hook or an assigned forward"):
            check_gradients(model, torch.randn(2, 3))


def test_gradients_that_are_zero_pass():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(4, 4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    check_gradients(model, torch.randn(2, 1, 8, 8))
