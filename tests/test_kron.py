"""Block-structured Kronecker algebra against dense matrices, and laplace-torch's posterior on top of it."""

import math

import pytest
import torch
from helpers import assert_close, parameter_slices, relative_error, small_data, small_network
from test_layers import LargestTensor
from torch.utils.data import DataLoader, TensorDataset

from ellarepro.curvature import BlockKronLaplace, EllaGGN
from ellarepro.curvature.exact import exact_ggn, jacobians
from ellarepro.curvature.ggn import GGN
from ellarepro.curvature.interop.kron import BlockKron
from ellarepro.curvature.spectra import SpectralCurvature
from ellarepro.evidence.marglik import MarginalLikelihood
from ellarepro.network import LAYERS, build_network
from ellarepro.settings.parts import AnchorSettings

pytestmark = pytest.mark.filterwarnings("ignore:Laplace.*:UserWarning")


def positive(groups: int, size: int, seed: int) -> torch.Tensor:
    rows = torch.randn(groups, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return rows @ rows.mT / size + 0.1 * torch.eye(size, dtype=torch.float64)


LAYOUTS = {
    "plain": ([positive(1, 3, 0), positive(1, 4, 1)], None),
    "single factor": ([positive(1, 5, 2)], None),
    "axis 0, second shared": ([positive(3, 2, 3), positive(1, 4, 4)], 0),
    "axis 0, first shared": ([positive(1, 2, 5), positive(3, 4, 6)], 0),
    "axis 0, none shared": ([positive(3, 2, 7), positive(3, 4, 8)], 0),
    "axis 1, first shared": ([positive(1, 2, 9), positive(3, 4, 10)], 1),
    "axis 1, second shared": ([positive(3, 2, 11), positive(1, 4, 12)], 1),
    "axis 1, none shared": ([positive(3, 2, 13), positive(3, 4, 14)], 1),
    "diagonal": ([torch.tensor([0.5, 2.0, 3.0, 0.1], dtype=torch.float64).view(4, 1, 1)], 0),
}


def dense_block(factors, axis) -> torch.Tensor:
    """The matrix of one tensor entry by entry of its groups: zero between groups, in the tensor's own order."""
    groups = max(len(factor) for factor in factors)
    per_group = []
    for g in range(groups):
        parts = [factor[g if len(factor) > 1 else 0] for factor in factors]
        per_group.append(parts[0] if len(parts) == 1 else torch.kron(parts[0], parts[1]))
    if axis != 1:
        return torch.block_diag(*per_group)
    first, second = factors[0].shape[1], factors[1].shape[1]
    matrix = torch.zeros(first, groups, second, first, groups, second, dtype=torch.float64)
    for g, block in enumerate(per_group):
        matrix[:, g, :, :, g, :] = block.view(first, second, first, second)
    size = first * groups * second
    return matrix.view(size, size)


def everything() -> BlockKron:
    return BlockKron([f for f, _ in LAYOUTS.values()], [axis for _, axis in LAYOUTS.values()], list(LAYOUTS))


def dense_everything(deltas=None) -> torch.Tensor:
    deltas = [0.0] * len(LAYOUTS) if deltas is None else deltas
    blocks = [dense_block(*layout) for layout in LAYOUTS.values()]
    return torch.block_diag(*(b + d * torch.eye(len(b), dtype=b.dtype) for b, d in zip(blocks, deltas, strict=True)))


def power(matrix: torch.Tensor, exponent: float) -> torch.Tensor:
    values, basis = torch.linalg.eigh(matrix)
    return basis * values**exponent @ basis.T


@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_block_is_its_dense_matrix(layout):
    factors, axis = LAYOUTS[layout]
    kron, dense = BlockKron([factors], [axis], [layout]), dense_block(factors, axis)
    assert_close(kron.to_matrix(), dense, 1e-13)
    assert_close(kron.diag(), dense.diagonal(), 1e-13)
    assert_close(kron.logdet(), dense.logdet(), 1e-12)
    assert_close(kron.decompose().to_matrix(), dense, 1e-12)
    if axis == 1:
        wrong = BlockKron([factors], [0], [layout])
        assert relative_error(wrong.to_matrix(), dense) > 0.1, "the control: the other group axis"


def test_undecomposed_algebra():
    kron, dense = everything(), dense_everything()
    w = torch.randn(2, 3, len(dense), dtype=torch.float64)
    assert_close(kron.bmm(w), w @ dense)
    assert_close(kron.bmm(w[0]), w[0] @ dense)
    assert_close(kron.bmm(w[0, 0]), dense @ w[0, 0])
    assert_close((kron * 2.5).to_matrix(), 2.5 * dense)
    assert_close((2.5 * kron).to_matrix(), 2.5 * dense)
    with pytest.raises(ValueError):
        kron.bmm(w, exponent=-1)


def test_adding_sums_factors_as_accumulating_over_batches_does():
    kron, twice = everything(), everything() + everything()
    assert all(
        (b == 2 * a).all() for x, y in zip(kron.kfacs, twice.kfacs, strict=True) for a, b in zip(x, y, strict=True)
    )
    assert sum([everything(), everything()]).names == kron.names
    assert (None + kron) is kron
    assert relative_error(twice.to_matrix(), 2 * dense_everything()) > 0.1, "both factors double, by convention"
    with pytest.raises(ValueError, match="same tensors"):
        kron + BlockKron(kron.kfacs, kron.group_axes, ["other"] * len(LAYOUTS))
    with pytest.raises(ValueError, match="same tensors"):
        kron + 3


def test_decomposed_algebra_with_a_precision_for_each_tensor():
    deltas = torch.linspace(0.1, 3, len(LAYOUTS), dtype=torch.float64)
    posterior, dense = everything().decompose() + deltas, dense_everything(deltas.tolist())
    w = torch.randn(2, 3, len(dense), dtype=torch.float64)
    assert_close(posterior.logdet(), dense.logdet())
    for exponent in (-1, -0.5, 1):
        wanted = power(dense, exponent)
        assert_close(posterior.to_matrix(exponent), wanted)
        assert_close(posterior.bmm(w, exponent), w @ wanted)
        assert_close(posterior.diag(exponent), wanted.diagonal())
        assert relative_error(posterior.diag(exponent), power(dense_everything(), exponent).diagonal()) > 0.05
    assert_close(posterior.inv_square_form(w), w @ dense.inverse() @ w.mT)
    assert_close(
        (everything().decompose() + torch.tensor(0.7, dtype=torch.float64)).to_matrix(),
        dense_everything([0.7] * len(LAYOUTS)),
    )
    scaled = everything().decompose() * 3 + deltas
    assert_close(scaled.to_matrix(), 3 * dense_everything() + dense - dense_everything())
    assert_close((deltas + everything().decompose()).logdet(), posterior.logdet())
    with pytest.raises(ValueError):
        posterior + torch.ones(2)
    with pytest.raises(NotImplementedError, match="damping"):
        everything().decompose(damping=True)


@pytest.mark.parametrize("structure", ["kron", "kron_blockwise", "diag"])
@pytest.mark.parametrize("layer", ["fc_conv", "f_fc_conv", "s_fc_s_conv"])
def test_kron_contract_of_the_backend(layer, structure):
    model, (x, y) = small_network(layer, anchors=AnchorSettings(learn_omega=True)), small_data(4)
    loss, kron = EllaGGN(model, "classification", structure=structure).kron(x, y, 40)
    assert_close(loss, torch.nn.functional.cross_entropy(model(x), y, reduction="sum").detach())
    assert kron.names == [name for name, _ in model.named_parameters()]
    assert len(kron.diag()) == sum(p.numel() for p in model.parameters())
    for name, s in parameter_slices(model).items():
        index = kron.names.index(name)
        assert_close(kron.diag()[s], dense_diagonal(kron.grouped[index], kron.group_axes[index]))
    _, as_if_all = EllaGGN(model, structure=structure).kron(x, y, 4)
    weight = parameter_slices(model)["head.2.weight"]
    factor = 1 if structure == "diag" else 10
    assert_close(as_if_all.diag()[weight], factor * kron.diag()[weight])


def dense_diagonal(factors, axis):
    return dense_block([torch.diag_embed(f.diagonal(dim1=1, dim2=2)) for f in factors], axis).diagonal()


def test_order_is_that_of_the_parameters():
    """Against the exact GGN, block by block: a block in the wrong place would not even be near."""
    model, (x, y) = small_network("f_fc_conv"), small_data(1)
    exact, ours = exact_ggn(model, x).diagonal(), EllaGGN(model, structure="kron_blockwise").kron(x, y, 1)[1].diag()
    slices = parameter_slices(model)
    for name, s in slices.items():
        if "conv.weight" not in name:
            assert_close(ours[s], exact[s], 1e-9)
    first = slices["blocks.1.paths.f_fc.theta2.weight"]
    assert relative_error(ours[first].view(2, 1, 64).transpose(0, 2).flatten(), exact[first]) > 0.1


def test_options_of_the_backend_are_honoured_or_refused():
    model, (x, y) = small_network(), small_data()
    with pytest.raises(ValueError, match="got 'softmax'"):
        EllaGGN(model, "softmax")
    with pytest.raises(ValueError, match="mc_samples"):
        EllaGGN(model).kron(x, y, 6, mc_samples=3)


@pytest.mark.parametrize("structure", ["kron", "kron_blockwise"])
def test_the_engine_of_asdl_gives_the_same_factors(structure):
    model, (x, y) = small_network("f_fc_conv"), small_data(4)
    ours = EllaGGN(model, structure=structure).kron(x, y, 8)[1]
    theirs = EllaGGN(model, structure=structure, engine="asdl").kron(x, y, 8)[1]
    for block, other in zip(ours.kfacs, theirs.kfacs, strict=True):
        for a, b in zip(block, other, strict=True):
            assert_close(a, b)


def loader(x, y):
    return DataLoader(TensorDataset(x, y), batch_size=4)


def precisions_of(model):
    return torch.linspace(0.5, 20, len(list(model.parameters())), dtype=torch.float64)


@pytest.fixture(scope="module")
def fitted():
    model, (x, y) = small_network("f_fc_conv"), small_data(10)
    la = BlockKronLaplace(model, "classification", prior_precision=precisions_of(model))
    la.fit(loader(x, y))
    return la, model, x, y


def evidence_of_the_objective(model, x, y, precisions):
    ggn = GGN(model, "kron", tolerance=0)
    for batch in x.split(4):
        ggn.update(batch)
    norms = torch.stack([p.detach().square().sum() for p in model.parameters()])
    nll = torch.nn.functional.cross_entropy(model(x), y, reduction="sum").item()
    objective = MarginalLikelihood(SpectralCurvature.from_blocks(ggn.blocks(len(x))), nll, norms, len(x))
    return objective.evidence(precisions.log())


@pytest.mark.parametrize("layer", LAYERS)
def test_laplace_torch_fits_every_network(layer):
    model, (x, y) = small_network(layer, anchors=AnchorSettings(learn_omega=True), group="c2"), small_data(6)
    la = BlockKronLaplace(model, "classification", prior_precision=precisions_of(model))
    la.fit(loader(x, y))
    evidence = evidence_of_the_objective(model, x, y, precisions_of(model)).value
    assert_close(la.log_marginal_likelihood(), evidence, 1e-9)
    assert relative_error(la.log_marginal_likelihood(2 * precisions_of(model)), evidence) > 1e-3, "the control"


def test_evidence_is_that_of_the_objective(fitted):
    la, model, x, y = fitted
    evidence = evidence_of_the_objective(model, x, y, precisions_of(model))
    assert_close(la.log_marginal_likelihood(), evidence.value)
    assert la.neg_log_marglik_per_datum() == pytest.approx(evidence.negative_per_datum, rel=1e-10)
    moved = evidence_of_the_objective(model, x, y, precisions_of(model).flip(0)).value
    assert relative_error(la.log_marginal_likelihood(), moved) > 1e-3


def test_predictive(fitted):
    la, model, x, _ = fitted
    probit = la(x[:3], link_approx="probit")
    sampled = la(x[:3], pred_type="nn", link_approx="mc", n_samples=30)
    linearised = la(x[:3], link_approx="mc", n_samples=2000)
    for p in (probit, sampled, linearised):
        assert p.shape == (3, 3)
        assert_close(p.sum(1), torch.ones(3, dtype=torch.float64), 1e-6)
    assert (probit - linearised).abs().max() < 0.15
    mean, covariance = la._glm_predictive_distribution(x[:3])
    jacobian, logits = jacobians(model, x[:3])
    assert_close(mean, logits)
    wanted, tensors = 0, zip(parameter_slices(model).values(), precisions_of(model), strict=True)
    for (s, delta), factors, axis in zip(tensors, la.H_facs.grouped, la.H_facs.group_axes, strict=True):
        block = dense_block(factors, axis)
        block.diagonal().add_(delta)
        wanted = wanted + jacobian[:, :, s] @ block.inverse() @ jacobian[:, :, s].mT
    assert_close(covariance, wanted, 1e-8)
    sure = BlockKronLaplace(model, "classification", prior_precision=1e12)
    sure.fit(loader(x, fitted[3]))
    assert_close(sure(x[:3], link_approx="probit"), logits.softmax(1), 1e-6)
    assert relative_error(probit, logits.softmax(1)) > 1e-2, "the control: the posterior matters"


def test_samples_have_the_posterior_covariance():
    torch.manual_seed(0)
    model, x, y = torch.nn.Sequential(torch.nn.Linear(2, 2)).double(), torch.randn(8, 2).double(), torch.arange(8) % 2
    la = BlockKronLaplace(model, "classification", prior_precision=torch.tensor([1.0, 4.0], dtype=torch.float64))
    la.fit(loader(x, y))
    samples = la.sample(40_000, generator=torch.Generator().manual_seed(0))
    wanted = la.posterior_precision.to_matrix().inverse()
    assert relative_error(samples.T.cov(), wanted) < 0.03
    assert relative_error(samples.T.cov(), la.posterior_precision.to_matrix(-0.5)) > 0.1, "the control: half the power"
    assert (samples.mean(0) - la.mean).abs().max() < 0.02


def test_state_dict_round_trip(fitted):
    la, model, x, _ = fitted
    other = BlockKronLaplace(model, "classification", prior_precision=1.0)
    other.load_state_dict(la.state_dict())
    assert_close(other.log_marginal_likelihood(), la.log_marginal_likelihood())
    assert_close(other(x[:2], link_approx="probit"), la(x[:2], link_approx="probit"))


def test_fitting_a_second_set_without_override(fitted):
    la, model, x, y = fitted
    both = BlockKronLaplace(model, "classification", prior_precision=precisions_of(model))
    both.fit(loader(x[:5], y[:5]))
    first = both.log_marginal_likelihood()
    both.fit(loader(x[5:], y[5:]), override=False)
    assert_close(both.log_marginal_likelihood(), la.log_marginal_likelihood())
    assert relative_error(first, la.log_marginal_likelihood()) > 1e-3


def test_before_a_fit_the_posterior_is_the_prior():
    model = small_network("f_fc_conv")
    la = BlockKronLaplace(model, "classification", prior_precision=3.0)
    value = torch.ones(la.n_params, dtype=torch.float64)
    assert_close(la.square_norm(value), 3 * (value - la.mean) @ (value - la.mean), 1e-6)
    assert_close(la.log_det_posterior_precision.double(), torch.tensor(la.n_params * math.log(3)).double(), 1e-6)
    with pytest.raises(ValueError, match="backend must be EllaGGN"):
        BlockKronLaplace(model, backend=torch.nn.Module)


def test_the_dense_factor_of_a_factored_layer_is_never_allocated():
    torch.manual_seed(0)
    model = build_network("f_fc", in_channels=8, num_classes=3, alpha=1, image_size=16)
    x, y = torch.randn(4, 8, 16, 16), torch.tensor([0, 1, 2, 0])
    dense = (8 * 256) ** 2
    with LargestTensor() as seen:
        la = BlockKronLaplace(model, "classification", prior_precision=1.0)
        la.fit(loader(x, y))
        la.log_marginal_likelihood()
        la.sample(2)
    assert 8 * 256**2 <= seen.entries < dense / 2, "at most C blocks of (X, X)"
    with LargestTensor() as control:
        super(BlockKronLaplace, la)._init_H()
    assert control.entries >= dense, "what laplace-torch would allocate"


@pytest.mark.parametrize("layer", ["f_fc_conv", "s_fc_s_conv"])
def test_data_that_are_added_to_a_fit_count_as_if_they_had_been_there(layer):
    """Of another size than the first: the factors that are divided by N are not the same ones in all tensors."""
    model, (images, labels) = small_network(layer), small_data(12)

    def fitted(*parts: slice) -> BlockKronLaplace:
        laplace = BlockKronLaplace(model)
        for part in parts:
            loader = DataLoader(TensorDataset(images[part], labels[part]), batch_size=5)
            laplace.fit(loader, override=False)
        return laplace

    whole, added, other = fitted(slice(12)), fitted(slice(9), slice(9, 12)), fitted(slice(9))
    for mine, wanted in zip(added.H_facs.kfacs, whole.H_facs.kfacs, strict=True):
        for a, b in zip(mine, wanted, strict=True):
            assert_close(a, b, 1e-10)
    assert_close(added.log_marginal_likelihood(), whole.log_marginal_likelihood(), 1e-9)
    assert relative_error(other.log_marginal_likelihood(), whole.log_marginal_likelihood()) > 0.01, "the control"
