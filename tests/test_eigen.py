"""Eigendecompositions: the matrices that make others fail, what is counted, and precisions from 1e-8 to 1e8."""

from collections import Counter

import mpmath
import pytest
import torch
from helpers import assert_close, relative_error

from ellarepro.curvature import eigen, spectra
from ellarepro.curvature.eigen import CurvatureError, counted, counts, symmetric_eigenvalues, symmetric_eigenvectors
from ellarepro.curvature.ggn import GGN
from ellarepro.curvature.interop.kron import BlockKron
from ellarepro.curvature.spectra import FullCurvature, SpectralCurvature
from ellarepro.evidence.marglik import MarginalLikelihood


@pytest.fixture(autouse=True)
def fresh_counts():
    counts.clear()


def symmetric(*shape: int, dtype=torch.float64) -> torch.Tensor:
    rows = torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return (rows @ rows.mT).to(dtype)


def check(matrices: torch.Tensor, tolerance: float) -> None:
    """Values ascend, are at least zero, agree between the two functions, and rebuild the matrices."""
    values, basis = symmetric_eigenvectors(matrices)
    assert values.dtype == basis.dtype == matrices.dtype
    assert (values >= 0).all() and (values.diff(dim=-1) >= -1e-7).all()
    assert relative_error(symmetric_eigenvalues(matrices), values) <= tolerance
    assert_close((basis * values[..., None, :]) @ basis.mT, matrices, tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_plain_and_batched(dtype):
    check(symmetric(6, 6, dtype=dtype), 1e-5 if dtype == torch.float32 else 1e-13)
    check(symmetric(4, 5, 5, dtype=dtype), 1e-5)
    assert counts["float64"] == counts["cpu"] == 0
    with pytest.raises(AssertionError):
        check(torch.tensor([[1.0, 3.0], [3.0, 1.0]], dtype=dtype), 1e-5)  # indefinite


def test_all_zero():
    check(torch.zeros(3, 40, 40), 0)
    assert counts["clipped"] == 0


def test_rank_one_of_size_1024():
    row = torch.randn(1, 1024, generator=torch.Generator().manual_seed(0))
    values = symmetric_eigenvalues(row.T @ row)
    assert values[-1].item() == pytest.approx(row.square().sum().item(), rel=1e-5)
    assert 0 <= values[:-1].max() < 1e-5 * values[-1]
    assert counts["clipped"] > 0, "rounding gives negative eigenvalues here"


def test_condition_of_1e17():
    basis = torch.linalg.qr(symmetric(30, 30))[0]
    spectrum = torch.logspace(-17, 0, 30, dtype=torch.float64)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-13)):
        check((basis * spectrum @ basis.T).to(dtype), tolerance)


@pytest.mark.parametrize("function", [symmetric_eigenvalues, symmetric_eigenvectors])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_entries_name_the_tensor(function, bad):
    matrix = symmetric(5, 5)
    matrix[2, 3] = bad
    with pytest.raises(CurvatureError, match=r"blocks\.0\.weight has non-finite entries.*learning rate"):
        function(matrix[None], "blocks.0.weight")
    function(symmetric(5, 5)[None], "blocks.0.weight")


def test_a_diverged_network_is_named_by_its_tensor():
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    with torch.no_grad():
        model[0].weight.fill_(float("nan"))
    fit = GGN(model, tolerance=0)
    fit.update(torch.randn(2, 3))
    blocks = fit.blocks(2)
    for decompose in (SpectralCurvature.from_blocks, lambda b: BlockKron.from_blocks(b).decompose()):
        with pytest.raises(CurvatureError, match=r"factor of 0\.weight"):
            decompose(blocks)


def test_slightly_asymmetric_is_symmetrised():
    matrix = symmetric(6, 6)
    skewed = matrix + 1e-6 * torch.triu(torch.ones_like(matrix), 1)
    assert_close(symmetric_eigenvalues(skewed), torch.linalg.eigvalsh((skewed + skewed.T) / 2), 1e-13)
    one_sided = torch.linalg.eigvalsh(skewed)
    assert relative_error(symmetric_eigenvalues(skewed), one_sided) > 1e-9, "the control: the lower half alone"


def test_negative_rounding_is_clipped_and_counted():
    matrices = torch.diag_embed(torch.tensor([[2.0, -1e-9, 1.0], [-1e-9, -1e-9, 1.0]]))
    values = symmetric_eigenvalues(matrices)
    assert counts["clipped"] == 3
    assert values.min() == 0 and values.max() == 2
    symmetric_eigenvalues(symmetric(4, 4))
    assert counts["clipped"] == 3


def failing(real, dtypes: tuple, times: int, how: str):
    """`real` that fails for these dtypes, the first `times` times: by an error or by a silent NaN."""
    left = [times]

    def attempt(matrix):
        result = real(matrix)
        if matrix.dtype in dtypes and left[0]:
            left[0] -= 1
            if how == "error":
                raise torch.linalg.LinAlgError("on purpose")
            return (
                result.new_full(result.shape, float("nan"))
                if isinstance(result, torch.Tensor)
                else tuple(part.new_full(part.shape, float("nan")) for part in result)
            )
        return result

    return attempt


@pytest.mark.parametrize("how", ["error", "nan"])
@pytest.mark.parametrize("name", ["eigh", "eigvalsh"])
def test_falls_back_to_float64_then_to_the_cpu(monkeypatch, name, how):
    function = symmetric_eigenvectors if name == "eigh" else symmetric_eigenvalues
    matrix, real = symmetric(8, 8, dtype=torch.float32), getattr(torch.linalg, name)
    plain = function(matrix)
    plain = plain[0] if isinstance(plain, tuple) else plain
    for dtypes, times, taken in (((torch.float32,), 9, "float64"), ((torch.float32, torch.float64), 2, "cpu")):
        counts.clear()
        monkeypatch.setattr(torch.linalg, name, failing(real, dtypes, times, how))
        values = function(matrix)
        values = values[0] if isinstance(values, tuple) else values
        assert values.dtype == torch.float32
        assert_close(values, plain, 1e-5)
        assert counts == {taken: 1, "clipped": 0}


def test_what_happens_is_counted_within_a_context():
    total, inner = Counter(cpu=1), Counter()
    symmetric_eigenvalues(torch.tensor([[-1.0]]))
    with counted(total):
        symmetric_eigenvalues(torch.tensor([[-1.0]]))
        with counted(inner):
            symmetric_eigenvalues(torch.diag(torch.tensor([-1.0, -1.0, 2.0])))
    assert counts["clipped"] == 4, "the control: of the process"
    assert total == {"cpu": 1, "clipped": 3} and inner == {"clipped": 2}
    with pytest.raises(CurvatureError), counted(inner):
        symmetric_eigenvalues(torch.tensor([[-1.0]]))
        symmetric_eigenvalues(torch.tensor([[float("nan")]]))
    assert inner == {"clipped": 3}, "before an error, too"


def test_raises_and_never_exits_when_nothing_converges(monkeypatch):
    monkeypatch.setattr(
        torch.linalg, "eigvalsh", failing(torch.linalg.eigvalsh, (torch.float32, torch.float64), 99, "error")
    )
    try:
        with pytest.raises(CurvatureError, match=r"no eigendecomposition of head \(3, 3\) converged"):
            symmetric_eigenvalues(symmetric(3, 3), "head")
    except SystemExit:
        pytest.fail("a failed decomposition must not end the process")


def test_no_identity_is_added():
    """laplace-torch adds the identity to a matrix that does not decompose, and says nothing."""
    assert eigen.symmetric_eigenvalues(torch.zeros(2, 2)).tolist() == [0, 0]


EXTREMES = [(1e8, 1e8), (1e-8, 1e-8), (1e8, 1e-8), (1.0, 1e8)]


@pytest.mark.parametrize("precisions", EXTREMES)
def test_evidence_at_extreme_precisions_equals_a_high_precision_reference(precisions):
    spectra = [torch.tensor([0.0, 1e-9, 3.0, 2e5], dtype=torch.float64), torch.tensor([7.0, 0.0], dtype=torch.float64)]
    norms = [0.3, 12.0]
    eta = torch.tensor(precisions, dtype=torch.float64).log().requires_grad_()
    objective = MarginalLikelihood(
        SpectralCurvature([[s[None]] for s in spectra]), 4.0, torch.tensor(norms, dtype=torch.float64), 10
    )
    value = objective.evidence(eta).value
    (gradient,) = torch.autograd.grad(value, eta)
    with mpmath.workdps(60):
        deltas = [mpmath.exp(mpmath.mpf(e)) for e in eta.tolist()]
        wanted, slopes = mpmath.mpf(-4), []
        for spectrum, delta, norm in zip(spectra, deltas, norms, strict=True):
            values = [mpmath.mpf(v) for v in spectrum.tolist()]
            wanted -= delta * mpmath.mpf(norm) / 2 + sum(mpmath.log(1 + v / delta) for v in values) / 2
            slopes.append(-delta * mpmath.mpf(norm) / 2 + sum(v / (v + delta) for v in values) / 2)
    assert value.item() == pytest.approx(float(wanted), rel=1e-13)
    assert gradient.tolist() == pytest.approx([float(s) for s in slopes], rel=1e-12)
    assert torch.isfinite(objective.effective_parameters(eta)).all()
    # The control: the same in float32, as a sum of separate log-determinants.
    single = [
        (s.float() + d).log().sum() - len(s) * torch.tensor(d).log() for s, d in zip(spectra, precisions, strict=True)
    ]
    exact = sum(mpmath.log(1 + mpmath.mpf(v) / d) for s, d in zip(spectra, deltas, strict=True) for v in s.tolist())
    assert abs(sum(single).item() / float(exact) - 1) > 1e-9


@pytest.mark.parametrize("precision", [1e8, 1e-8])
def test_dense_curvature_at_extreme_precisions(precision):
    matrix = symmetric(4, 4)
    spectrum = torch.linalg.eigvalsh(matrix)
    eta = torch.tensor([precision], dtype=torch.float64).log().requires_grad_()
    full = FullCurvature(matrix, [4]).log_det_ratio(eta.exp())
    assert_close(full, torch.log1p(spectrum / precision).sum(), 1e-6)
    assert torch.isfinite(torch.autograd.grad(full, eta)[0]).all()


def test_posterior_precision_at_extreme_precisions():
    kron = BlockKron([[symmetric(3, 3)[None].float()], [torch.zeros(1, 2, 2)]], [None, None], ["a", "b"]).decompose()
    for precision in (1e8, 1e-8):
        posterior = kron + torch.tensor(precision)
        assert torch.isfinite(posterior.logdet())
        assert torch.isfinite(posterior.bmm(torch.ones(1, 1, 5), exponent=-0.5)).all()
        assert (posterior.diag(exponent=-1) > 0).all()


def test_small_curvature_beside_a_large_precision_keeps_its_digits():
    spectrum, precision = torch.tensor([1e-9, 3.0], dtype=torch.float64), torch.tensor([1e8], dtype=torch.float64)
    with mpmath.workdps(60):
        wanted = float(sum(mpmath.log(1 + mpmath.mpf(value) / 10**8) for value in spectrum.tolist()))
    found = SpectralCurvature([[spectrum[None]]]).log_det_ratio(precision).item()
    assert found == pytest.approx(wanted, rel=1e-14, abs=0)
    plain = (1 + spectrum / precision).log().sum().item()
    assert plain != pytest.approx(wanted, rel=1e-11, abs=0), "the control: no log1p"


SHAPES = [[(1, 3), (1, 5)], [(2, 7), (1, 2)], [(1, 2), (4, 3)], [(3, 4), (3, 9)], [(1, 30)], [(2, 11)]]


@pytest.mark.parametrize("together", [1, 4, 8, 2**18])
@pytest.mark.parametrize("shapes", SHAPES, ids=str)
def test_large_blocks_are_summed_in_parts_that_leave_nothing_out(shapes, together, monkeypatch):
    monkeypatch.setattr(spectra, "_PART", together)
    generator = torch.Generator().manual_seed(0)
    factors = [torch.rand(shape, dtype=torch.float64, generator=generator) for shape in shapes]
    delta = torch.tensor([0.3], dtype=torch.float64, requires_grad=True)
    found = SpectralCurvature([factors]).log_det_ratio(delta)
    groups = max(len(factor) for factor in factors)
    each = [[factor[g if len(factor) > 1 else 0] for factor in factors] for g in range(groups)]
    products = torch.cat([torch.kron(*pair) if len(pair) == 2 else pair[0] for pair in each])
    wanted = (products / delta).log1p().sum()
    assert_close(found, wanted, 1e-13)
    assert_close(torch.autograd.grad(found, delta)[0], torch.autograd.grad(wanted, delta)[0], 1e-13)


def test_a_full_matrix_that_rounding_has_made_indefinite_is_refused():
    matrix = torch.diag(torch.tensor([4.0, -1e-3, -1e-3], dtype=torch.float64))
    curvature = FullCurvature(matrix, [1, 2])
    for delta in (1e-2, 1.0):
        wanted = (1 + matrix.diagonal() / delta).log().sum()
        assert_close(curvature.log_det_ratio(torch.full((2,), delta, dtype=torch.float64)), wanted, 1e-12)
    # Two eigenvalues below zero: their signs cancel in the determinant.
    with pytest.raises(CurvatureError, match=r"precisions \(1e-05 and more\) is not positive definite; take larger"):
        curvature.log_det_ratio(torch.full((2,), 1e-5, dtype=torch.float64))
