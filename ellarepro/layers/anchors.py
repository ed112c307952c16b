"""Anchors (Section 3.1): filters given by values u at a few positions z and a basis around them, theta = u Psi(omega).

One class serves all sparse layers: it holds the values, the positions and the basis; what is done with the filters is
the subclass's `response`. Positions are measured in pixels, so omega is in units of 1 / pixel.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ellarepro.curvature.rule import CurvatureRule
from ellarepro.layers.spatial import Shape, zero_bias
from ellarepro.settings.parts import AnchorSettings

READ_OFF = 1e-2
"""How far, without noise, a filter of the posterior mean may be from its values where these are given."""


def rbf(anchors: Tensor, grid: Shape, omega: Tensor, noise: float) -> Tensor:
    """Psi[p, x] = exp(-omega^2 |x - z_p|^2), `(P, X)`, of anchors `(P, 2)` and the pixels of `grid`; without `noise`.

    As the product of its two axes, so that H + W exponentials an anchor do, not H W.
    """
    axes = [torch.arange(size, dtype=anchors.dtype, device=anchors.device) for size in grid]
    rows, columns = (
        torch.exp(-(omega * (axis - z[:, None])).square()) for axis, z in zip(axes, anchors.T, strict=True)
    )
    return (rows[:, :, None] * columns[:, None, :]).flatten(1)


def posterior_mean(anchors: Tensor, grid: Shape, omega: Tensor, noise: float) -> Tensor:
    """Psi = (K_zz + noise I)^-1 K_zx with the kernel of `rbf`: u Psi is the mean of the Gaussian process seen at u.

    Computed in float64: towards small omega the kernel matrix is nearly singular.
    """
    anchors, precise = anchors.double(), omega.double()
    kernel = torch.exp(-precise.square() * (anchors[:, None] - anchors[None]).square().sum(2))
    jittered = kernel + noise * torch.eye(len(anchors), dtype=kernel.dtype, device=kernel.device)
    # Not `solve`, which looks for failures on the host, at every step and within a graph that is being captured.
    return torch.linalg.solve_ex(jittered, rbf(anchors, grid, precise, noise)).result.to(omega.dtype)


BASES: dict[str, Callable[[Tensor, Shape, Tensor, float], Tensor]] = {"rbf": rbf, "posterior_mean": posterior_mean}
"""Name of a basis to Psi of (anchors, grid, omega, noise)."""


def grid_positions(shape: Shape) -> Tensor:
    """Row and column of every pixel in row-major order, `(X, 2)`, float."""
    rows, columns = (torch.arange(size, dtype=torch.get_default_dtype()) for size in shape)
    return torch.cartesian_prod(rows, columns)


class Anchored(nn.Module):
    """A leaf layer with weight `theta = u Psi`, for u `(D, C, P)` and P of the pixels of a grid as anchors.

    The anchors are drawn without replacement, shared by the channels and kept with the layer's state; they are all
    pixels in their order at P = X. Where omega is fixed, Psi is computed once and kept; where it is learned, once a
    forward pass.

    Parameters: `weight (D, C, P)`, `bias (D)` if asked for, `omega (1)` if learned. Buffers: `anchors (P, 2)`, and
    where omega is fixed `omega (1)` and `psi (P, X)`.

    Args:
        channels: D and C.
        grid: shape of the filters.
        count: P.
        settings: basis and lengthscale; `share` and `per_filter` are the caller's.
        std: that a filter's entries have at the start where theta = u: what the entries are scaled to.
        bias: whether there is one for each d.
    """

    anchors: Tensor
    omega: Tensor
    psi: Tensor
    sums_over_positions = True
    """Whether the filters are summed over the grid (u, u2) or spread over it (u1)."""

    def __init__(
        self, channels: tuple[int, int], grid: Shape, count: int, settings: AnchorSettings, std: float, bias: bool
    ):
        super().__init__()
        self.grid = grid
        self.settings = settings
        positions = grid_positions(grid)
        # One draw of the global generator whatever P is: other layers start alike for every setting of the anchors.
        generator = torch.Generator().manual_seed(int(torch.randint(2**31, (), device="cpu")))
        drawn = torch.randperm(len(positions), generator=generator, device="cpu")[:count].sort().values
        self.register_buffer("anchors", positions[drawn])
        omega = torch.full((1,), settings.omega)
        psi = self._psi(omega)
        self._check_values_are_read_off(psi)
        self.weight = nn.Parameter(torch.randn(*channels, count) * std / self._amplification(psi))
        if bias:
            self.bias = zero_bias(channels[0])
        if settings.learn_omega:
            self.omega = nn.Parameter(omega)
        else:
            self.register_buffer("omega", omega)
            self.register_buffer("psi", psi)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.response(inputs, self.basis())

    def response(self, inputs: Tensor, basis: Tensor) -> Tensor:
        """The layer's output with the given `basis (P, X)` in place of its own."""
        raise NotImplementedError

    def basis(self, omega: Tensor | None = None) -> Tensor:
        """Psi `(P, X)`, at the layer's own omega if none is given."""
        if omega is None and not self.settings.learn_omega:
            return self.psi
        return self._psi(self.omega if omega is None else omega)

    def filters(self, basis: Tensor) -> Tensor:
        """theta = u Psi, `(D, C, *grid)`."""
        return (self.weight @ basis).unflatten(2, self.grid)

    def _amplification(self, psi: Tensor) -> Tensor:
        """By how much the layer's output grows when filters u become u Psi, for random u.

        A sum over positions is taken of maps that hardly vary over the reach of a basis function, as images do.
        """
        entries = psi.sum(1) if self.sums_over_positions else psi
        return (entries.square().sum() / psi.shape[1]).sqrt()

    def _psi(self, omega: Tensor) -> Tensor:
        return BASES[self.settings.basis](self.anchors, self.grid, omega, self.settings.noise)

    def _check_values_are_read_off(self, psi: Tensor) -> None:
        if self.settings.basis != "posterior_mean" or self.settings.noise or psi.is_meta:
            return
        width = self.grid[1]
        at_anchors = psi[:, (self.anchors[:, 0] * width + self.anchors[:, 1]).long()]
        if not (at_anchors - torch.eye(len(psi))).abs().max() < READ_OFF:
            raise ValueError(
                f"anchors.omega={self.settings.omega:g} is too small for anchors.noise=0 on a grid of "
                f"{self.grid[0]} x {width}: rounding decides what posterior_mean is; give a larger omega, or some noise"
            )

    def extra_repr(self) -> str:
        out_channels, in_channels, count = self.weight.shape
        learned = ", omega learned" if self.settings.learn_omega else ""
        return f"{in_channels}, {out_channels}, {count} anchors on {self.grid}, {self.settings.basis}{learned}"


class AnchoredRule(CurvatureRule):
    """What the sparse layers' rules add to those of the layers they stand for: projection onto anchors, and omega."""

    pointwise = ("omega",)

    def project(self, rows: Tensor) -> Tensor:
        """Rows over positions `(..., X)` to rows over anchors `(..., P)` (Section 5.2, chain rule): rows Psi^T."""
        return rows @ self.layer.basis().detach().to(rows).T

    def tangent(self, inputs: Tensor, name: str) -> Tensor:
        return torch.func.jvp(
            lambda omega: self.layer.response(inputs, self.layer.basis(omega)),
            (self.layer.omega.detach(),),
            (torch.ones_like(self.layer.omega),),
        )[1]
