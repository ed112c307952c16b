"""The oracle passes every rule of the project, and finds each way in which one can be wrong."""

import pytest
import torch
from torch import Tensor, nn

from ellarepro.curvature.oracle import assert_rule_matches_oracle
from ellarepro.curvature.rule import UnclaimedParameterError, register
from ellarepro.curvature.rules.convolution import Conv2dRule
from ellarepro.curvature.rules.linear import LinearRule
from ellarepro.curvature.rules.normalisation import LayerNormRule
from ellarepro.curvature.structures import DiagStructure, KronStructure
from ellarepro.layers.anchors import AnchorSettings
from ellarepro.layers.conv import Conv
from ellarepro.layers.dense import Dense
from ellarepro.layers.factored import FactoredDense
from ellarepro.layers.gconv import GroupConv
from ellarepro.layers.sparse import SparseConv, SparseDense

IMAGE = (4, 5, 5)
LEARNED = AnchorSettings(learn_omega=True, omega=0.7)
SAME, HALF = ((4, 4), (4, 4)), ((4, 4), (2, 2))

OURS = {
    "fc": (lambda: Dense(2, 3, *HALF), (2, 4, 4)),
    "conv": (lambda: Conv(2, 3, *SAME), (2, 4, 4)),
    "conv, half": (lambda: Conv(2, 3, *HALF), (2, 4, 4)),
    "conv, zeros": (lambda: Conv(2, 3, (8, 8), (8, 8), padding_mode="zeros"), (2, 8, 8)),
    "conv, one pixel": (lambda: Conv(2, 3, (1, 1), (1, 1)), (2, 1, 1)),
    "f_fc": (lambda: FactoredDense(2, 3, *HALF), (2, 4, 4)),
    "f_fc, one channel": (lambda: FactoredDense(1, 1, *SAME), (1, 4, 4)),
    "s_fc": (lambda: SparseDense(2, 3, *HALF), (2, 4, 4)),
    "s_fc, omega": (lambda: SparseDense(2, 3, *HALF, anchors=LEARNED), (2, 4, 4)),
    "s_conv": (lambda: SparseConv(2, 3, *HALF), (2, 4, 4)),
    "s_conv, omega": (lambda: SparseConv(2, 3, *SAME, anchors=LEARNED), (2, 4, 4)),
    "gconv, c2": (lambda: GroupConv(4, 4, *SAME, group="c2"), (4, 4, 4)),
    "gconv, c4, half": (lambda: GroupConv(8, 4, *HALF), (8, 4, 4)),
    "gconv, d4, lifting": (lambda: GroupConv(2, 8, *SAME, group="d4", lifting=True), (2, 4, 4)),
}
CONVOLUTIONS = {
    "plain": (lambda: nn.Conv2d(4, 6, 3, padding=1), (4, 8, 9)),
    "same, circular": (lambda: nn.Conv2d(4, 6, 3, padding="same", padding_mode="circular"), (4, 8, 9)),
    "small map": (lambda: nn.Conv2d(4, 6, 3, padding=1, bias=False), IMAGE),
    "stride": (lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1, padding_mode="replicate"), IMAGE),
    "dilation": (lambda: nn.Conv2d(4, 6, 3, dilation=2, padding="same", padding_mode="reflect"), IMAGE),
    "even kernel": (lambda: nn.Conv2d(4, 6, (4, 2), padding="same"), IMAGE),
    "valid": (lambda: nn.Conv2d(4, 6, 5, padding="valid"), IMAGE),
    "all at once": (
        lambda: nn.Conv2d(4, 6, (2, 3), (2, 1), (1, 2), (1, 2), groups=2, padding_mode="circular"),
        IMAGE,
    ),
    "one pixel each": (lambda: nn.Conv2d(4, 6, 1), IMAGE),
    "grouped": (lambda: nn.Conv2d(4, 6, 5, groups=2), IMAGE),
    "depthwise": (lambda: nn.Conv2d(4, 4, 3, padding=1, groups=4), IMAGE),
    "depthwise, two each": (lambda: nn.Conv2d(4, 8, 3, stride=2, groups=4), IMAGE),
    "one axis": (lambda: nn.Conv1d(4, 6, 3, padding=1), (4, 7)),
    "one axis, all at once": (
        lambda: nn.Conv1d(4, 6, 2, dilation=2, padding="same", groups=2, padding_mode="circular"),
        (4, 7),
    ),
    "one axis, stride": (lambda: nn.Conv1d(4, 6, 4, stride=3, padding=2, padding_mode="reflect"), (4, 7)),
}
OTHERS = {
    "linear": (lambda: nn.Linear(5, 4), (5,)),
    "linear, positions": (lambda: nn.Linear(5, 4), (3, 5)),
    "linear, two axes of positions": (lambda: nn.Linear(5, 4, bias=False), (2, 3, 5)),
    "batch norm of features": (lambda: nn.BatchNorm1d(4), (4,)),
    "batch norm of sequences": (lambda: nn.BatchNorm1d(4), (4, 6)),
    "batch norm of images": (lambda: nn.BatchNorm2d(4), IMAGE),
    "group norm": (lambda: nn.GroupNorm(2, 4), IMAGE),
    "group norm of features": (lambda: nn.GroupNorm(2, 4), (4,)),
    "layer norm": (lambda: nn.LayerNorm(5), (3, 5)),
    "layer norm without positions": (lambda: nn.LayerNorm(5, bias=False), (5,)),
    "layer norm of two axes": (lambda: nn.LayerNorm((5, 5)), IMAGE),
}
EMBEDDINGS = {
    "sequences": (lambda: nn.Embedding(7, 3), (4,)),
    "padding": (lambda: nn.Embedding(7, 3, padding_idx=2), (6,)),
    "negative padding": (lambda: nn.Embedding(7, 3, padding_idx=-1), (6,)),
    "one word": (lambda: nn.Embedding(7, 3), ()),
}


def built(case):
    torch.manual_seed(0)
    make, shape = case
    return make(), torch.randn(3, *shape)


@pytest.mark.parametrize("case", OURS)
def test_layers_of_the_project(case):
    reports = assert_rule_matches_oracle(*built(OURS[case]))
    assert {report.structure for report in reports} == {"kron", "kron_blockwise", "diag"}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_stock_convolutions(case):
    assert_rule_matches_oracle(*built(CONVOLUTIONS[case]))


@pytest.mark.parametrize("case", OTHERS)
def test_linear_and_normalisation_layers(case):
    layer, inputs = built(OTHERS[case])
    if hasattr(layer, "running_mean"):
        layer.running_mean.normal_()
        layer.running_var.uniform_(0.5, 2)
    reports = assert_rule_matches_oracle(layer, inputs)
    if "norm" in case:
        assert all(report.error < 1e-10 for report in reports if report.structure != "diag"), "affine: exact blocks"


@pytest.mark.parametrize("case", EMBEDDINGS)
def test_embeddings(case):
    make, shape = EMBEDDINGS[case]
    words = torch.randint(7, (4, *shape), generator=torch.Generator().manual_seed(0))
    assert_rule_matches_oracle(make(), words)


def test_blocks_that_are_exact_say_so_and_others_do_not(capsys):
    reports = assert_rule_matches_oracle(*built(OTHERS["linear, positions"]))
    found = {(report.tensor, report.structure): report for report in reports}
    assert found["bias", "kron"].error < 1e-12 and found["bias", "kron"].trace_ratio == pytest.approx(1)
    assert found["weight", "kron"].error > 0.1
    assert found["weight", "diag"].trace_ratio == pytest.approx(1) and found["weight", "diag"].error > 0.1
    assert capsys.readouterr().out.count("trace ratio") == len(reports) == 6


def test_the_layer_stays_as_it_is():
    layer, inputs = nn.BatchNorm1d(4), torch.randn(3, 4)
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    assert_rule_matches_oracle(layer, inputs)
    assert layer.training and layer.weight.dtype == torch.float32
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())


class SumForMean(LinearRule):
    def input_factor(self, inputs: Tensor) -> Tensor:
        return super().input_factor(inputs) * inputs[0, ..., 0].numel()


class Shuffled(LinearRule):
    def output_rows(self, gradients: Tensor) -> Tensor:
        return super().output_rows(gradients).flip(-1)


class OneOfManyPositions(LinearRule):
    def output_rows(self, gradients: Tensor) -> Tensor:
        return super().output_rows(gradients)[:, :, :1]


class LastPositionOfBias(LinearRule):
    def bias_rows(self, gradients: Tensor) -> Tensor:
        return gradients[:, -1]


class BiasIsOnePosition(LinearRule):
    def bias_rows(self, gradients: Tensor) -> Tensor:
        return gradients.flatten(1)


class TransposedWeight(LinearRule):
    input_first = True


class GroupsInTheMiddle(Conv2dRule):
    def __init__(self, layer: nn.Conv2d):
        super().__init__(layer)
        self.group_axis = 1


class ZeroPadding(Conv2dRule):
    def input_rows(self, inputs: Tensor) -> Tensor:
        padded = nn.functional.pad(inputs, (1, 1, 1, 1))
        return self._grouped(self.unfold(padded))


class ForgottenBias(LayerNormRule):
    def tangent(self, inputs: Tensor, name: str) -> Tensor:
        return inputs


POSITIONS = (lambda: nn.Linear(5, 4), (3, 5))
CIRCULAR = (lambda: nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular", groups=2), IMAGE)


@pytest.mark.parametrize(
    ("rule", "case", "said"),
    [
        (SumForMean, POSITIONS, r"weight: input factor beside the mean"),
        (Shuffled, POSITIONS, r"weight: gradient of each sample"),
        (OneOfManyPositions, POSITIONS, r"weight: rows .* got input \(1, 3, 3, 5\), output \(1, 3, 1, 4\)"),
        (LastPositionOfBias, POSITIONS, r"bias: gradient of each sample"),
        (BiasIsOnePosition, POSITIONS, r"bias: gradient of each sample.*\(3, 4\): got shape \(3, 12\)"),
        (TransposedWeight, POSITIONS, r"weight: gradient of each sample"),
        (GroupsInTheMiddle, CIRCULAR, r"weight: gradient of each sample"),
        (ZeroPadding, CIRCULAR, r"weight: gradient of each sample"),
        (ForgottenBias, (lambda: nn.LayerNorm(5), (3, 5)), r"weight: gradient of each sample"),
    ],
)
def test_a_wrong_rule_is_found(rule, case, said):
    layer, inputs = built(case)
    changed = type("Changed", (type(layer),), {})
    register(changed)(rule)
    layer.__class__ = changed
    with pytest.raises(AssertionError, match=said):
        assert_rule_matches_oracle(layer, inputs)
    layer.__class__ = changed.__base__
    assert_rule_matches_oracle(layer, inputs)


class DoubledBias(nn.Linear):
    def forward(self, inputs: Tensor) -> Tensor:
        return inputs @ self.weight.T + 2 * self.bias


@register(DoubledBias)
class DoubledBiasRule(LinearRule):
    def bias_rows(self, gradients: Tensor) -> Tensor:
        return 2 * gradients


def test_a_bias_that_is_not_the_output_is_found():
    with pytest.raises(AssertionError, match="bias: exact block under kron"):
        assert_rule_matches_oracle(DoubledBias(5, 4), torch.randn(3, 5))


@pytest.mark.parametrize(
    ("structure", "said"),
    [
        (KronStructure, "weight: one datum, within groups, under kron_blockwise"),
        (DiagStructure, "weight: diag beside the exact diagonal"),
    ],
)
def test_a_wrong_scale_is_found(structure, said, monkeypatch):
    right = structure.blocks

    def blocks(self, data_size):
        return {name: block.scaled(1 + (name == "weight")) for name, block in right(self, data_size).items()}

    monkeypatch.setattr(structure, "blocks", blocks)
    with pytest.raises(AssertionError, match=said):
        assert_rule_matches_oracle(nn.Linear(5, 4), torch.randn(3, 5))


def test_what_it_cannot_check_is_refused():
    with pytest.raises(ValueError, match="at least 2 samples, got 1"):
        assert_rule_matches_oracle(nn.Linear(2, 2), torch.randn(1, 2))
    with pytest.raises(UnclaimedParameterError, match="weight of PReLU"):
        assert_rule_matches_oracle(nn.PReLU(), torch.randn(2, 2))
