"""Agreement with laplace-torch's AsdlGGN and CurvlinopsGGN where they are right: zero padding and linear layers.

Everything agrees but one convention: for a convolution's bias, both peers take the sum over positions of g g^T (the
output factor of the weight) where the exact block is that of the summed gradients, (sum g)(sum g)^T. On the network
below the trace of theirs is 0.67 (first convolution) and 1.51 (second) of the exact one. So whole networks are
compared without such biases, and with them block by block.
"""

import pytest
import torch
from helpers import assert_close, parameter_slices, perturb_biases, relative_error, small_data
from laplace import KronLaplace, Laplace
from laplace.curvature import AsdlGGN, CurvlinopsGGN
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from ellarepro import FitSettings, LayerwiseLaplace, Regression
from ellarepro.curvature import BlockKronLaplace, EllaGGN
from ellarepro.curvature.exact import exact_ggn

PEERS = {"asdl": AsdlGGN, "curvlinops": CurvlinopsGGN}
CONV_BIASES = ("0.bias", "2.bias")


def network(conv_bias: bool = True, padding_mode: str = "zeros") -> nn.Sequential:
    """The same weights at every call: a peer leaves attributes behind on its network."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, padding_mode=padding_mode, bias=conv_bias),
        nn.ReLU(),
        nn.Conv2d(4, 3, 3, padding=1, stride=2, padding_mode=padding_mode, bias=conv_bias),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(48, 6),
        nn.ReLU(),
        nn.Linear(6, 4),
    )
    return perturb_biases(model.double())


@pytest.fixture
def data():
    return small_data(10, channels=2, classes=4)


def blocks_of_both(peer, data, **options):
    """Loss and, by parameter name, the factors of ours and of the peer's, for a training set of 50."""
    loss, ours = EllaGGN(network(**options)).kron(*data, 50)
    peer_loss, theirs = PEERS[peer](network(**options), "classification").kron(*data, N=50)
    assert_close(loss, peer_loss)
    mine = [[factor[0] for factor in factors] for factors in ours.grouped]
    return {name: (a, b) for name, a, b in zip(ours.names, mine, theirs.kfacs, strict=True)}


@pytest.mark.parametrize("peer", PEERS)
def test_factors_agree_block_by_block(peer, data):
    found = blocks_of_both(peer, data)
    for name, (ours, theirs) in found.items():
        if name not in CONV_BIASES:
            for a, b in zip(ours, theirs, strict=True):
                assert_close(a, b, 1e-8)
    circular = blocks_of_both(peer, data, padding_mode="circular")
    ours, theirs = circular["2.weight"]
    assert relative_error(theirs[1], ours[1]) > 0.1, "the control: peers take zeros for circular padding"


@pytest.mark.parametrize("peer", PEERS)
def test_the_convention_for_convolution_biases_differs(peer, data):
    found, exact = blocks_of_both(peer, data), exact_ggn(network(), data[0])
    slices = parameter_slices(network())
    for name, trace in zip(CONV_BIASES, (0.667, 1.514), strict=True):
        (ours,), (theirs,) = found[name]
        assert_close(ours, exact[slices[name], slices[name]], 1e-8)
        assert_close(theirs, found[name.replace("bias", "weight")][0][0], 1e-8)
        assert (theirs.trace() / ours.trace()).item() == pytest.approx(trace, abs=0.01)


def fitted(laplace, data, conv_bias: bool, **options):
    la = laplace(network(conv_bias), "classification", prior_precision=1.0, **options)
    la.fit(DataLoader(TensorDataset(*data), batch_size=4))
    return la


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("peer", PEERS)
def test_log_determinant_and_evidence_agree(peer, data):
    for conv_bias in (False, True):
        ours = fitted(BlockKronLaplace, data, conv_bias)
        theirs = fitted(KronLaplace, data, conv_bias, backend=PEERS[peer])
        error = relative_error(ours.log_det_posterior_precision, theirs.log_det_posterior_precision)
        evidence = relative_error(ours.log_marginal_likelihood(), theirs.log_marginal_likelihood())
        if conv_bias:
            assert 1e-5 < error < 0.1, "the control: another block for the biases of convolutions"
        else:
            assert error < 1e-6 and evidence < 1e-6
            assert_close(ours.posterior_precision.diag(), theirs.posterior_precision.diag(), 1e-6)
            x = data[0][:3]
            assert_close(ours(x, link_approx="probit"), theirs(x, link_approx="probit"), 1e-6)
    moved = ours.log_marginal_likelihood(prior_precision=torch.tensor(2.0, dtype=torch.float64))
    assert relative_error(moved, theirs.log_marginal_likelihood()) > 1e-3


def by_the_factory(model, likelihood, structure, data, **options):
    la = Laplace(model, likelihood, subset_of_weights="all", hessian_structure=structure, backend=EllaGGN, **options)
    la.fit(DataLoader(TensorDataset(*data), batch_size=4))
    return la


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize("structure", ["kron", "diag", "full"])
def test_the_factory_of_laplace_torch_takes_the_backend(structure, peer, data):
    ours = by_the_factory(network(conv_bias=False), "classification", structure, data)
    if structure == "kron":
        blocks = fitted(BlockKronLaplace, data, conv_bias=False)
        assert_close(ours.log_marginal_likelihood(), blocks.log_marginal_likelihood())
    other = network(conv_bias=False)
    theirs = Laplace(other, "classification", "all", structure, backend=PEERS[peer])
    theirs.fit(DataLoader(TensorDataset(*data), batch_size=4))
    assert_close(ours.log_marginal_likelihood(), theirs.log_marginal_likelihood(), 1e-6)
    assert_close(ours(data[0][:3]), theirs(data[0][:3]), 1e-6)
    before = ours.log_marginal_likelihood().item()
    ours.optimize_prior_precision(method="marglik", prior_structure="layerwise")
    assert ours.log_marginal_likelihood().item() > before + 1


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize("structure", ["kron", "diag", "full"])
def test_regression_agrees(structure, peer):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    inputs = torch.randn(10, 3, dtype=torch.float64)
    data = inputs, inputs[:, :2].sin()
    ours = by_the_factory(model, "regression", structure, data, sigma_noise=0.3)
    theirs = Laplace(model, "regression", "all", structure, backend=PEERS[peer], sigma_noise=0.3)
    theirs.fit(DataLoader(TensorDataset(*data), batch_size=4))
    assert_close(ours.log_marginal_likelihood(), theirs.log_marginal_likelihood(), 1e-6)
    for a, b in zip(ours(inputs[:3]), theirs(inputs[:3]), strict=True):
        assert_close(a, b, 1e-6)
    settings = FitSettings(structure, batch_size=4)
    door = LayerwiseLaplace(model, Regression(0.3**-2), settings=settings).fit(data)
    assert door.log_marginal_likelihood() == pytest.approx(ours.log_marginal_likelihood().item(), rel=1e-5)
    other = LayerwiseLaplace(model, Regression(0.6**-2), settings=settings).fit(data)
    assert other.log_marginal_likelihood() != pytest.approx(ours.log_marginal_likelihood().item(), rel=1e-2)


def test_the_backend_says_what_it_does_not_take(data):
    with pytest.raises(ValueError, match="likelihood must be one of classification, regression; got 'reward_modeling'"):
        EllaGGN(network(), "reward_modeling")
    with pytest.raises(ValueError, match="input must be one tensor, got dict"):
        EllaGGN(network()).kron({"input_ids": data[0]}, data[1], 10)
    with pytest.raises(ValueError, match="from 0 to 3"):
        EllaGGN(network()).kron(data[0], data[1] + 4, 10)


def test_a_saved_state_is_loaded_by_either(data):
    fitted = by_the_factory(network(conv_bias=False), "classification", "kron", data)
    other = Laplace(network(conv_bias=False), "classification", "all", "kron", backend=EllaGGN)
    other.load_state_dict(fitted.state_dict())
    assert_close(other(data[0]), fitted(data[0]), 1e-6)


LAST = [("last_layer", "kron"), ("last_layer", "diag"), ("last_layer", "full")]


@pytest.mark.parametrize(("subset", "structure"), LAST)
def test_the_last_layer_alone_is_the_block_of_the_last_layer(subset, structure):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    inputs, labels = torch.randn(8, 3, dtype=torch.float64), torch.arange(8) % 2
    loader = DataLoader(TensorDataset(inputs, labels), batch_size=8)
    la = Laplace(model, "classification", subset_of_weights=subset, hessian_structure=structure, backend=EllaGGN)
    la.fit(loader)
    features = model[:2](inputs)
    wanted = exact_ggn(model[2], features.detach())
    head = EllaGGN(model[2], "classification").kron(features.detach(), labels, 8)[1].to_matrix()
    found = {"kron": lambda: la.H_facs.to_matrix(), "diag": lambda: la.H.diag(), "full": lambda: la.H}[structure]()
    assert_close(found, {"kron": head, "diag": wanted.diagonal().diag(), "full": wanted}[structure])
    mean, spread = la._glm_predictive_distribution(inputs[:2])
    assert_close(mean, model(inputs[:2]).detach())
    assert (spread.diagonal(dim1=1, dim2=2) > 0).all()


@pytest.mark.parametrize("structure", ["diag", "full"])
def test_a_subnetwork_is_a_part_of_the_exact_matrix(structure):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    inputs, labels = torch.randn(8, 3, dtype=torch.float64), torch.arange(8) % 2
    chosen = torch.tensor([0, 5, 13, 20])
    la = Laplace(
        model,
        "classification",
        "subnetwork",
        structure,
        subnetwork_indices=chosen,
        backend=EllaGGN,
        prior_precision=1.0,
    )
    la.fit(DataLoader(TensorDataset(inputs, labels), batch_size=3))
    exact = exact_ggn(model, inputs)[chosen][:, chosen]
    assert_close(la.H, exact if structure == "full" else exact.diagonal())


def test_a_loaded_fit_goes_on_and_a_decomposition_has_copies():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    inputs, labels = torch.randn(12, 3, dtype=torch.float64), torch.arange(12) % 2
    parts = [DataLoader(TensorDataset(inputs[i : i + 6], labels[i : i + 6]), batch_size=6) for i in (0, 6)]
    for kind in (
        lambda: Laplace(model, "classification", "all", "kron", backend=EllaGGN),
        lambda: BlockKronLaplace(model),
    ):
        once, loaded, gone = kind(), kind(), kind()
        once.fit(parts[0])
        loaded.load_state_dict(once.state_dict())
        loaded.fit(parts[1], override=False)
        gone.fit(parts[0])
        copied = gone.H.clone()
        gone.fit(parts[1], override=False)
        assert_close(loaded.H_facs.to_matrix(), gone.H_facs.to_matrix())
        assert relative_error(copied.to_matrix(), gone.H.to_matrix()) > 0.1
        assert_close(copied.to_matrix(), once.H.to_matrix())
    whole = kind()
    whole.fit(DataLoader(TensorDataset(inputs, labels), batch_size=12))
    assert relative_error(whole.H_facs.to_matrix(), gone.H_facs.to_matrix()) < 0.2, "near the fit of all data at once"
    with pytest.raises(ValueError, match="only to factors of the same tensors"):
        _ = once.H_facs + EllaGGN(model[2], "classification").kron(torch.randn(2, 4).double(), labels[:2], 2)[1]
