"""Running sums of a a^T: kept by few rows or as a matrix, they are the same sums with the same eigenvalues."""

import io

import pytest
import torch
from helpers import assert_close, relative_error, small_data, small_network
from test_layers import LargestTensor
from torch import nn

from ellarepro.curvature.factors import MomentSum, add_second_moment_, second_moment
from ellarepro.curvature.ggn import GGN
from ellarepro.curvature.interop.kron import BlockKron
from ellarepro.curvature.structures import factor_bytes
from ellarepro.data import Samples
from ellarepro.evidence.marglik import fit
from ellarepro.evidence.prior import LayerwisePrior
from ellarepro.settings.parts import FitSettings


@pytest.mark.parametrize("width", [3, 511, 512, 1025])
@pytest.mark.parametrize("positions_last", [False, True])
def test_second_moments_of_any_width_and_memory_layout(width, positions_last):
    rows = torch.randn(2, 3, 4, width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    if positions_last:
        rows = rows.transpose(2, 3).contiguous().transpose(2, 3)
    wanted = torch.einsum("gnti,gntj->gij", rows, rows)
    assert_close(second_moment(rows), wanted, 1e-13)
    assert_close(add_second_moment_(wanted.sum(0, keepdim=True), rows), 2 * wanted.sum(0, keepdim=True), 1e-13)
    assert relative_error(second_moment(rows), wanted.flip(0)) > 0.1, "the control: the other group's"


def batches(count: int, width: int = 9, groups: int = 2) -> list[torch.Tensor]:
    """`count` rows a group, in batches of three."""
    rows = torch.randn(groups, count, width, dtype=torch.float64, generator=torch.Generator().manual_seed(count))
    return list(rows.split(3, dim=1))


def summed(parts, across_groups: bool = False) -> MomentSum:
    total = MomentSum()
    for rows in parts:
        total.add_rows_(rows, across_groups)
    return total


@pytest.mark.parametrize("across_groups", [False, True])
@pytest.mark.parametrize("count", [1, 4, 8, 9, 20])
def test_a_sum_kept_by_its_rows_is_the_sum(count, across_groups):
    parts = batches(count)
    total, rows = summed(parts, across_groups), torch.cat(parts, 1)
    wanted = second_moment(rows)
    if across_groups:
        wanted = wanted.sum(0, keepdim=True)
    kept = count * (2 if across_groups else 1)
    assert (total.matrix is None) == (kept < 9), "rows while they are fewer than they are wide"
    assert_close(total.dense(), wanted, 1e-13)
    values = torch.linalg.eigvalsh(wanted)
    found = torch.linalg.eigvalsh(total.smallest())
    assert found.shape[1] == min(kept, 9) == total.shape[1]
    assert_close(found, values[:, -found.shape[1] :], 1e-12)
    assert values[:, : -found.shape[1]].abs().sum() < 1e-12 * values.sum(), "what is left out is zero"
    assert relative_error(total.smallest().diagonal(dim1=1, dim2=2).sum(1), 2 * values.sum(1)) > 0.1
    assert total.nbytes == 8 * len(wanted) * 9 * min(kept, 9)
    one_less = second_moment(rows[:, :-1]) if count > 1 else torch.zeros_like(wanted)
    assert relative_error(one_less.sum(0), wanted.sum(0)) > 1e-3, "the control: a row less"


def test_rows_of_zeros_are_not_decomposed_and_matrices_may_be_added_to_rows():
    (rows,) = batches(3)
    total = summed([rows, torch.zeros(2, 4, 9, dtype=torch.float64)])
    assert total.shape == (2, 7) and total.smallest().shape == (2, 3, 3)
    assert summed([torch.zeros(2, 4, 9)]).smallest().shape == (2, 0, 0)
    total.add_matrix_(second_moment(rows))
    assert_close(total.dense(), 2 * second_moment(rows), 1e-13)


@pytest.mark.parametrize("count", [8, 20])
def test_units_that_are_never_active_are_not_decomposed(count):
    rows = torch.cat(batches(count), 1)
    rows[:, :, 2:7] = 0
    rows[1, :, 2] = 1e-5
    total = summed(rows.split(3, dim=1))
    assert (total.matrix is None) == (count == 8)
    found, values = torch.linalg.eigvalsh(total.smallest()), torch.linalg.eigvalsh(second_moment(rows))
    assert found.shape == (2, 5), "four, and one that is active in one group"
    assert_close(found, values[:, -5:], 1e-12)
    assert values[:, :-5].abs().max() < 1e-12 and found[1, 0] > 1e-10, "the control: the smallest is not lost"


@pytest.mark.parametrize("count", [4, 9, 20])
def test_a_sum_goes_on_from_its_state_bit_for_bit(count):
    parts = batches(count)
    whole, first = summed(parts), summed(parts[:2])
    buffer = io.BytesIO()
    torch.save(first.state_dict(), buffer)
    buffer.seek(0)
    total = MomentSum.of_state(torch.load(buffer, weights_only=True), torch.device("cpu"))
    for rows in parts[2:]:
        total.add_rows_(rows)
    assert torch.equal(total.smallest(), whole.smallest()) and torch.equal(total.dense(), whole.dense())
    if count > 4:
        assert relative_error(first.dense(), whole.dense()) > 0.1, "the control: without the rest"


def test_rows_are_a_copy_of_what_the_layer_saw():
    (rows,) = batches(3)
    before, total = rows.clone(), summed([rows])
    rows.relu_()
    assert_close(total.dense(), second_moment(before), 1e-13)
    assert relative_error(second_moment(rows), second_moment(before)) > 0.1, "the control"


def add_as_matrix(total: MomentSum, rows: torch.Tensor, across_groups: bool = False) -> None:
    total.add_matrix_(second_moment(rows).sum(0, keepdim=True) if across_groups else second_moment(rows))


@pytest.mark.parametrize("size", [2, 12])
@pytest.mark.parametrize("structure", ["kron", "kron_blockwise"])
@pytest.mark.parametrize("layer", ["fc_conv", "f_fc", "s_fc", "f_fc_conv_gconv"])
def test_the_evidence_by_rows_is_that_by_matrices(monkeypatch, layer, structure, size):
    model, data = small_network(layer), Samples(*small_data(size))
    eta = torch.linspace(-2, 3, len(list(model.parameters())), dtype=torch.float64)
    settings = FitSettings(structure, tolerance=0.0, batch_size=5)
    by_rows = fit(model, LayerwisePrior(model), data, settings)
    monkeypatch.setattr(MomentSum, "add_rows_", add_as_matrix)
    by_matrices = fit(model, LayerwisePrior(model), data, settings)
    assert_close(by_rows.evidence(eta).value, by_matrices.evidence(eta).value)
    assert_close(by_rows.effective_parameters(eta), by_matrices.effective_parameters(eta), 1e-8)
    kron, dense = (BlockKron.from_blocks(found.curvature.blocks) for found in (by_rows, by_matrices))
    for mine, other in zip(kron.kfacs, dense.kfacs, strict=True):
        for a, b in zip(mine, other, strict=True):
            assert_close(a, b)
    sizes = [sum(s.numel() for s in found.curvature.spectra) for found in (by_rows, by_matrices)]
    assert sizes[0] < sizes[1], "the control: matrices have the zeros, too"


@pytest.mark.parametrize("structure", ["kron", "kron_blockwise", "diag"])
def test_a_fit_goes_on_in_the_middle_whatever_its_sums_are_kept_by(structure):
    model, (images, _) = small_network("fc_conv"), small_data(14)
    whole, first, second = (GGN(model, structure) for _ in range(3))
    for batch in images.split(5):
        whole.update(batch)
    for batch in images.split(5)[:2]:
        first.update(batch)
    second.load_state_dict(first.state_dict(), torch.device("cpu"))
    for batch in images.split(5)[2:]:
        first.update(torch.zeros_like(batch))  # The control: what goes on has a sum of its own.
        second.update(batch)
    for name, block in second.blocks(14).items():
        for mine, theirs, other in zip(
            block.parts, whole.blocks(14)[name].parts, first.blocks(14)[name].parts, strict=True
        ):
            assert torch.equal(mine.total.smallest(), theirs.total.smallest())
            assert mine.scale == theirs.scale and mine.total is not other.total


@pytest.mark.parametrize("size", [1, 5, 40, 200])
@pytest.mark.parametrize("layer", ["fc_conv", "f_fc"])
def test_the_forecast_knows_what_is_kept_by_rows(layer, size):
    model, images = small_network(layer).float(), small_data(size)[0].float()
    ggn = GGN(model, tolerance=0)
    for batch in images.split(7):
        ggn.update(batch)
    forecast = ggn.forecast(images)
    assert forecast.total == factor_bytes(ggn.blocks(size))
    matrices = ggn.forecast(images[:1].expand(10_000, -1, -1, -1)).total
    assert forecast.total == matrices if size == 200 else forecast.total < matrices


def test_the_matrix_of_a_wide_layer_is_never_formed_for_few_data():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(256, 4), nn.Tanh(), nn.Linear(4, 3))
    images, labels = small_data(6, side=16)
    data = Samples(images.float(), labels)
    with LargestTensor() as seen:
        evidence = fit(model, LayerwisePrior(model), data, FitSettings(tolerance=0.0))
    assert seen.entries <= 6 * 256
    with LargestTensor() as control:
        BlockKron.from_blocks(evidence.curvature.blocks)
    assert control.entries == 256**2, "a posterior asks for it"
