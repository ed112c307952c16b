"""Agreement with laplace-torch's AsdlGGN and CurvlinopsGGN where they are right: zero padding and linear layers.

Everything agrees but one convention: for a convolution's bias, both peers take the sum over positions of g g^T (the
output factor of the weight) where the exact block is that of the summed gradients, (sum g)(sum g)^T. On the network
below the trace of theirs is 0.67 (first convolution) and 1.51 (second) of the exact one. So whole networks are
compared without such biases, and with them block by block.
"""

import pytest
import torch
from helpers import assert_close, parameter_slices, perturb_biases, relative_error, small_data
from laplace import KronLaplace
from laplace.curvature import AsdlGGN, CurvlinopsGGN
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

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
    mine = [[factor[0] for factor in factors] for factors in ours.kfacs]
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
