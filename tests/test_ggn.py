"""The passes of a fit: the square root of Lambda, the tolerance, the state of the model, what is refused."""

from copy import deepcopy
from itertools import product

import pytest
import torch
from helpers import assert_close, relative_error, small_data, small_network
from torch import nn

from ellarepro.curvature import EllaGGN
from ellarepro.curvature.columns import LambdaSquareRoot, SignedColumns, UnitColumns
from ellarepro.curvature.exact import exact_ggn
from ellarepro.curvature.factors import MomentSum
from ellarepro.curvature.ggn import GGN
from ellarepro.curvature.interop.kron import BlockKron
from ellarepro.curvature.likelihood import softmax_hessian
from ellarepro.curvature.rule import UnclaimedParameterError
from ellarepro.settings.parts import AnchorSettings

STRUCTURES = ["kron", "kron_blockwise", "diag"]

LOGITS = {
    "random": torch.randn(8, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2,
    "uniform": torch.zeros(2, 5, dtype=torch.float64),
    "exact zeros": torch.tensor([[0.0, 1.0, -1e5, 2.0, -1e5]], dtype=torch.float64),
    "one-hot": torch.tensor([[0.0, 1e5, 0.0, 0.0, 0.0]], dtype=torch.float64),
    "tiny tails": torch.tensor([[0.0, -40.0, -80.0, -200.0, -300.0]], dtype=torch.float64),
    "two classes": torch.tensor([[0.3, -0.7]], dtype=torch.float64),
}


def sum_of_squares(root, columns):
    return sum(root.column(r)[:, :, None] * root.column(r)[:, None, :] for r in range(columns))


@pytest.mark.parametrize("case", LOGITS)
def test_columns_make_lambda_with_one_less_than_the_classes(case):
    logits = LOGITS[case]
    root, most = LambdaSquareRoot(logits, tolerance=0), logits.shape[1] - 1
    assert root.passes_needed.tolist() == [most] * len(logits)
    wanted = softmax_hessian(logits)
    assert (sum_of_squares(root, most) - wanted).abs().max() < 1e-15
    for index in range(most):
        assert root.column(index).sum(1).abs().max() < 1e-15
    if case in ("random", "uniform", "two classes"):
        assert (sum_of_squares(root, most - 1) - wanted).abs().max() > 1e-4, "the control: a column too few"


@pytest.mark.parametrize("tolerance", [1e-1, 1e-3, 1e-8])
def test_what_is_left_out_is_small_and_its_trace_is_kept(tolerance):
    logits = LOGITS["random"] * 3
    root = LambdaSquareRoot(logits, tolerance)
    assert root.passes_needed.min() < 4 or tolerance < 1e-7
    for n, passes in enumerate(root.passes_needed.tolist()):
        rest = softmax_hessian(logits)[n] - sum_of_squares(root, passes)[n]
        mass = logits[n].softmax(0).sort(descending=True).values[passes:].sum().item()
        assert mass < tolerance or passes == 4
        assert abs(rest.trace()) < 1e-14
        assert rest.norm() <= 2 * mass + 1e-14
        if passes > 1:
            before = logits[n].softmax(0).sort(descending=True).values[passes - 1 :].sum()
            assert before >= tolerance, "no pass more than needed"


def drawn(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def mean_over_signs(logits, passes, patterns=None):
    """The mean of sum over passes of v v^T, over all (or the given) signs of the columns, one pattern after another."""
    most, total = logits.shape[1] - 1, 0
    patterns = patterns or list(product((-1.0, 1.0), repeat=most))
    for signs in patterns:
        root = SignedColumns(logits, passes, drawn())
        root.signs = torch.tensor(signs, dtype=torch.float64).expand(len(logits), most)
        total = total + sum_of_squares(root, root.passes)
    return total / len(patterns)


@pytest.mark.parametrize("passes", [1, 2, 3])
@pytest.mark.parametrize("case", LOGITS)
def test_the_mean_over_all_signs_of_sampled_passes_is_lambda(case, passes):
    logits = LOGITS[case]
    wanted = softmax_hessian(logits)
    assert (mean_over_signs(logits, passes) - wanted).abs().max() < 1e-15
    root = SignedColumns(logits, passes, drawn())
    assert root.passes_needed.unique().item() == min(passes, logits.shape[1] - 1)
    for index in range(root.passes):
        assert root.column(index).sum(1).abs().max() < 1e-15
    if case in ("random", "uniform"):
        signs = [1.0] * (logits.shape[1] - 1)
        assert (mean_over_signs(logits, passes, [signs]) - wanted).abs().max() > 1e-3, "the control: without signs"


@pytest.mark.parametrize("case", LOGITS)
def test_as_many_sampled_passes_as_columns_are_exact(case):
    logits, most = LOGITS[case], LOGITS[case].shape[1] - 1
    for passes in (most, most + 7):
        root = SignedColumns(logits, passes, drawn())
        assert root.passes == most
        assert (sum_of_squares(root, most) - softmax_hessian(logits)).abs().max() < 1e-15


@pytest.mark.parametrize(
    "make",
    [
        lambda logits: LambdaSquareRoot(logits, 0.01),
        lambda logits: SignedColumns(logits, 2, drawn()),
        lambda logits: UnitColumns(logits, 2, drawn()),
    ],
)
def test_the_columns_of_some_samples_are_those_of_all(make):
    root, kept = make(LOGITS["random"]), torch.arange(len(LOGITS["random"])) % 3 == 1
    part = root.subset(kept)
    assert part.passes_needed.equal(root.passes_needed[kept])
    for index in range(int(part.passes_needed.max())):
        assert part.column(index).equal(root.column(index)[kept])


def spread(estimates, wanted):
    """Root of the mean squared error, over the norm of what is wanted."""
    return (sum((e - wanted).square().sum() for e in estimates) / len(estimates)).sqrt() / wanted.norm()


def test_signed_columns_spread_less_than_classes_drawn_from_the_prediction():
    """The reason for signs: the usual draw e_k - p, k ~ p, is as unbiased, but says little where p is sure."""
    logits = LOGITS["random"] * 2
    wanted, p = softmax_hessian(logits), logits.softmax(1)
    for passes in (1, 2):
        signed, labels = [], []
        for seed in range(400):
            signed.append(sum_of_squares(SignedColumns(logits, passes, drawn(seed)), passes))
            classes = torch.multinomial(p, passes, replacement=True, generator=drawn(seed))
            v = (nn.functional.one_hot(classes, logits.shape[1]) - p[:, None]) / passes**0.5
            labels.append(v.mT @ v)
        assert (sum(signed) / 400 - wanted).abs().max() < 0.05
        assert (sum(labels) / 400 - wanted).abs().max() < 0.05, "both are unbiased"
        assert spread(signed, wanted) < 0.7 * spread(labels, wanted)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_sampled_passes_repeat_with_the_generator_and_are_exact_in_the_limit(structure, confident):
    model, x = confident

    def diagonal(**options):
        ggn = GGN(model, structure, tolerance=0, **options)
        ggn.update(x)
        return BlockKron.from_blocks(ggn.blocks(12)).diag(), ggn.class_passes

    exact, wanted_passes = diagonal()
    assert wanted_passes == 12 * 5
    once, passes = diagonal(passes=1, generator=drawn(1))
    assert passes == 12
    assert torch.equal(once, diagonal(passes=1, generator=drawn(1))[0])
    assert not torch.equal(once, diagonal(passes=1, generator=drawn(2))[0])
    assert_close(diagonal(passes=5, generator=drawn(3))[0], exact)
    assert relative_error(once, exact) > 1e-3, "the control: one sampled pass is not exact"


def columns_by_elimination(lam, order, columns):
    """Columns of a Cholesky factor, one class eliminated after another: textbook arithmetic, no closed form.

    The last column is lengthened by the trace of what is left.
    """
    rest, found = lam.clone(), []
    for index in order[:columns]:
        pivot = rest[index, index]
        column = rest[:, index] / pivot.sqrt() if pivot > 1e-12 else torch.zeros_like(rest[:, index])
        rest = rest - column.outer(column)
        found.append(column)
    found[-1] = found[-1] * ((1 + rest.trace().clamp_min(0) / found[-1].square().sum().clamp_min(1e-300)).sqrt())
    return found


def logits_and_layer_outputs(model, layers, x):
    outputs = {}
    hooks = [
        layer.register_forward_hook(lambda module, args, out, name=name: outputs.update({name: out}))
        for name, layer in layers.items()
    ]
    logits = model(x)
    for hook in hooks:
        hook.remove()
    return logits, outputs


def truncated_curvature(model, x, tolerance):
    """The curvature of each sample alone, its class passes truncated by hand."""
    total = None
    for image in x:
        ggn = GGN(model, "kron", tolerance=0)
        ggn.update(image[None])
        for part in ggn.parts.values():
            part.output_factor, part.exact = MomentSum(), {}
        logits, outputs = logits_and_layer_outputs(model, ggn.layers, image[None])
        p, order = logits.detach().softmax(1)[0].sort(descending=True)
        passes = sum(p[r:].sum() >= tolerance for r in range(len(p) - 1))
        for column in columns_by_elimination(softmax_hessian(logits.detach())[0], order, passes):
            gradients = torch.autograd.grad(logits, outputs.values(), column[None], retain_graph=True)
            for name, gradient in zip(outputs, gradients, strict=True):
                ggn.parts[name].add_gradients(gradient)
        kron = BlockKron.from_blocks(ggn.blocks(len(x)))
        total = kron if total is None else total + kron
    return total


@pytest.fixture(params=["f_fc_conv", "s_fc_s_conv"])
def confident(request):
    """A network whose predictions differ in how sure they are, so that samples leave at different passes."""
    model = small_network(request.param, num_classes=6, anchors=AnchorSettings(learn_omega=True))
    images = small_data(12)[0] * torch.linspace(0.2, 3, 12, dtype=torch.float64)[:, None, None, None]
    with torch.no_grad():
        model.head[2].weight.mul_(5 / model(images).std(0).mean())
        model.head[2].bias.sub_(model(images).mean(0))
    return model, images


def test_tolerance_with_gathering_is_the_truncation_sample_by_sample(confident, monkeypatch):
    model, x = confident
    monkeypatch.setattr("ellarepro.curvature.ggn._GATHER_BELOW", 0.999)
    gathered = GGN(model, "kron", tolerance=0.05)
    gathered.update(x)
    needed = LambdaSquareRoot(model(x).detach(), 0.05).passes_needed
    assert len(needed.unique()) >= 3
    assert gathered.class_passes == needed.sum(), "every sample takes its own passes and no more"
    ours = BlockKron.from_blocks(gathered.blocks(len(x)))
    wanted = truncated_curvature(model, x, 0.05)
    exact = EllaGGN(model).kron(x, torch.zeros(12, dtype=torch.long), N=12)[1]
    for block, truncated in zip(ours.kfacs, wanted.kfacs, strict=True):
        for a, b in zip(block, truncated, strict=True):
            assert_close(a, b, 1e-9)
    errors = [relative_error(a[0], b[0]) for a, b in zip(ours.kfacs, exact.kfacs, strict=True)]
    assert max(errors) > 1e-4, "the control: truncated is not exact"


@pytest.mark.parametrize("structure", STRUCTURES)
def test_tolerance_changes_little_and_less_the_smaller_it_is(confident, structure):
    model, x = confident
    diagonals = {}
    for tolerance in (0, 1e-12, 1e-3, 0.3):
        ggn = GGN(model, structure, tolerance)
        ggn.update(x)
        diagonals[tolerance] = BlockKron.from_blocks(ggn.blocks(12)).diag()
    assert_close(diagonals[1e-12], diagonals[0], 1e-9)
    small, large = (relative_error(diagonals[tolerance], diagonals[0]) for tolerance in (1e-3, 0.3))
    assert small < 1e-2 and 10 * small < large, "the control: a large tolerance shows"


@pytest.mark.parametrize("structure", STRUCTURES)
def test_with_a_tolerance_batch_mates_still_do_not_matter(confident, structure):
    model, x = confident
    found = []
    for size in (5, 12):
        ggn = GGN(model, structure, tolerance=0.05)
        for batch in x.split(size):
            ggn.update(batch)
        found.append(BlockKron.from_blocks(ggn.blocks(12)).diag())
    assert_close(found[0], found[1], 1e-10)


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("layer", ["fc_conv", "f_fc_conv"])
def test_the_sum_over_batches_does_not_depend_on_their_size(layer, structure):
    model, x = small_network(layer), small_data(21)[0]
    found = {}
    for size in (3, 7, 21):
        ggn = GGN(model, structure, tolerance=0)
        for batch in x.split(size):
            ggn.update(batch)
        found[size] = ggn.blocks(21)
    for name, block in found[21].items():
        for i, factor in enumerate(block.factors):
            assert_close(found[3][name].factors[i], factor)
            assert_close(found[7][name].factors[i], factor)
    half = GGN(model, structure, tolerance=0)
    half.update(x[:7])
    assert relative_error(half.blocks(21)["head.2.bias"].factors[0], found[21]["head.2.bias"].factors[0]) > 0.1


def state_of(model):
    return {
        "attributes": {name: {k: id(v) for k, v in vars(module).items()} for name, module in model.named_modules()},
        "hooks": [list(module._forward_hooks) + list(module._backward_hooks) for module in model.modules()],
        "parameters": [(name, p.requires_grad, p.grad, set(vars(p))) for name, p in model.named_parameters()],
        "training": [module.training for module in model.modules()],
    }


class Spy(nn.Module):
    """Records, at each forward pass, which parameters could receive a gradient; fails at a given call."""

    def __init__(self, model: nn.Module, fails: bool = False):
        super().__init__()
        self.model, self.fails, self.seen = model, fails, []

    def forward(self, x):
        self.seen.append([p.requires_grad for p in self.parameters()])
        if self.fails:
            raise RuntimeError("on purpose")
        return self.model(x)


def test_no_weight_gradients_and_nothing_left_on_the_model():
    model, (x, y) = Spy(small_network()), small_data()
    values, before = deepcopy(model.state_dict()), state_of(model)
    for structure in STRUCTURES:
        backend = EllaGGN(model, structure=structure)
        backend.kron(x, y, N=6)
        model.seen.clear()  # The first time the rules are checked, by gradients of weights.
        backend.kron(x, y, N=6)
    assert state_of(model) == before
    assert all(torch.equal(value, values[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert model.seen and not any(flag for flags in model.seen for flag in flags)
    model(x)
    assert all(model.seen[-1]), "the control: outside a fit they can"


def test_nothing_left_on_the_model_after_an_error():
    model, x = Spy(small_network(), fails=True), small_data()[0]
    before = state_of(model)
    with pytest.raises(RuntimeError, match="on purpose"):
        GGN(model).update(x)
    assert state_of(model) == before


def test_works_under_no_grad():
    model, x = small_network(), small_data()[0]
    with torch.no_grad():
        inside = GGN(model, tolerance=0)
        inside.update(x)
    outside = GGN(model, tolerance=0)
    outside.update(x)
    assert_close(inside.blocks(6)["head.2.weight"].factors[0], outside.blocks(6)["head.2.weight"].factors[0])


@pytest.mark.parametrize("inplace", [False, True])
def test_an_activation_may_overwrite_the_output_of_a_layer(inplace):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(inplace=inplace), nn.Linear(6, 3)).double()
    x = torch.randn(5, 4, dtype=torch.float64)
    assert_close(EllaGGN(model).diag(x, torch.zeros(5, dtype=torch.long))[1], exact_ggn(model, x).diagonal())


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


class Bare(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, x):
        return x * self.scale


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (nn.PReLU(), "1.weight"),
        (nn.RNN(3, 3), "1.weight_ih_l0"),
        (nn.MultiheadAttention(3, 1), "1.in_proj_weight"),
        (nn.ConvTranspose1d(3, 3, 1), "1.weight"),
        (Bare(), "1.scale"),
        (Doubled(3, 3), "1.weight"),
    ],
)
def test_unclaimed_parameters_are_named(module, name):
    model = nn.Sequential(nn.Linear(4, 3), module)
    with pytest.raises(UnclaimedParameterError, match=f"trainable parameter {name} of {type(module).__name__}"):
        GGN(model)
    GGN(model.requires_grad_(False))


def test_extra_parameter_on_a_known_layer_is_unclaimed():
    layer = nn.Linear(4, 3)
    layer.scale = nn.Parameter(torch.ones(1))
    with pytest.raises(UnclaimedParameterError, match="scale"):
        GGN(layer)


def test_frozen_parameters_are_left_out():
    model, x = small_network(), small_data()[0]
    whole = GGN(model, tolerance=0)
    whole.update(x)
    frozen = ["blocks.0.paths.conv.weight", "head.0.bias", "blocks.2.paths.f_fc.theta1.weight", "head.2.weight"]
    for name in frozen:
        model.get_parameter(name).requires_grad_(False)
    part = GGN(model, tolerance=0)
    part.update(x)
    blocks = part.blocks(6)
    assert list(blocks) == [name for name, _ in model.named_parameters() if name not in frozen]
    for name, block in blocks.items():
        for got, wanted in zip(block.factors, whole.blocks(6)[name].factors, strict=True):
            assert_close(got, wanted)
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == sorted(frozen)


def test_tied_weights_a_layer_used_twice_and_an_unused_one_are_refused():
    tied = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3))
    tied[2].weight = tied[0].weight
    with pytest.raises(UnclaimedParameterError, match=r"2.weight is the same tensor as 0.weight"):
        GGN(tied)
    layer, x = nn.Linear(3, 3), torch.randn(2, 3)
    twice = nn.Sequential(layer, nn.ReLU(), layer)
    before = state_of(twice)
    with pytest.raises(ValueError, match="layer 0 is called twice"):
        GGN(twice).update(x)
    assert state_of(twice) == before
    unused = nn.Sequential(nn.Linear(3, 3))
    unused.spare = nn.Linear(3, 3)
    unused.forward = lambda x: unused[0](x)
    with pytest.raises(ValueError, match=r"\['spare'\] take no part"):
        GGN(unused).update(x)


def test_options_are_checked():
    model = nn.Linear(3, 3)
    with pytest.raises(ValueError, match="'full'"):
        GGN(model, "full")
    for tolerance in (-0.1, 1.0):
        with pytest.raises(ValueError, match="^tolerance must be at least 0 and below 1; got"):
            GGN(model, tolerance=tolerance)
    with pytest.raises(ValueError, match="^passes must be at least 1; got 0"):
        GGN(model, passes=0, generator=drawn())
    with pytest.raises(ValueError, match="need a generator"):
        GGN(model, passes=1)
