"""Learned affine invariance: f(x) = mean over s of g(T(eta, u_s) x), u uniform on [-1, 1] (Immer et al., 2022, LILA).

T = exp(sum_i u_i eta_i G_i) with six generators. A range eta_i of zero leaves the image as it is; one of pi for the
rotation makes f invariant to all rotations. Training loss cannot learn eta, the marginal likelihood can.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ellarepro.curvature.rule import COPIES

GENERATORS = {
    "shift_x": ((0, 0, 1), (0, 0, 0), (0, 0, 0)),
    "shift_y": ((0, 0, 0), (0, 0, 1), (0, 0, 0)),
    "rotation": ((0, -1, 0), (1, 0, 0), (0, 0, 0)),
    "scale_x": ((1, 0, 0), (0, 0, 0), (0, 0, 0)),
    "scale_y": ((0, 0, 0), (0, 1, 0), (0, 0, 0)),
    "shear": ((0, 1, 0), (1, 0, 0), (0, 0, 0)),
}
"""In coordinates in which the image reaches from -1 to 1: shifts in half images, the rotation in radians."""


class Affine(nn.Module):
    """The transformation, and its ranges.

    Args:
        start: of every range; not zero, where the evidence is stationary, as it is even in eta.
        learned: names of the generators whose ranges are learned; the others stay at zero.
        copies: S, of each image.

    Attributes:
        eta: `(6,)`, the ranges; a buffer, as they are no weights and have no prior.
        learned: `(6,)`, one for those that are learned, zero for the others.

    Raises:
        ValueError: an unknown generator, a start of zero, or no copies.
    """

    eta: Tensor
    learned: Tensor

    def __init__(self, start: float = 0.1, learned: tuple[str, ...] = tuple(GENERATORS), copies: int = 8):
        super().__init__()
        if unknown := sorted(set(learned) - set(GENERATORS)):
            raise ValueError(f"learned must name generators among {', '.join(GENERATORS)}; got {', '.join(unknown)}")
        if not start:
            raise ValueError("start must not be 0, where the evidence is stationary in the ranges; got 0")
        if copies < 1:
            raise ValueError(f"copies must be at least 1; got {copies}")
        self.copies = copies
        mask = torch.tensor([float(name in learned) for name in GENERATORS])
        self.register_buffer("generators", torch.tensor(list(GENERATORS.values()), dtype=torch.float32))
        self.register_buffer("eta", start * mask)
        self.register_buffer("learned", mask)

    def ranges(self) -> dict[str, float]:
        """|eta| by generator: shifts in half images, the rotation in radians, logarithms of scales."""
        return dict(zip(GENERATORS, self.eta.detach().abs().tolist(), strict=True))

    def forward(self, images: Tensor, draws: Tensor | None = None) -> Tensor:
        """`images (B, C, H, W)`, each by its own or by all `draws (B or 1, S, 6)`: `(B S, C, H, W)`, S in a row.

        Without draws it is the identity, as an `nn.Sequential` calls all its modules, this one on its outputs.
        """
        if draws is None:
            return images
        batch, copies = len(images), draws.shape[1]
        angles = (draws.to(self.eta) * self.eta).flatten(0, 1)
        matrices = torch.linalg.matrix_exp(torch.einsum("si,ijk->sjk", angles, self.generators.to(self.eta)))
        size = [len(matrices), *images.shape[1:]]
        grid = F.affine_grid(matrices[:, :2].to(images), size, align_corners=False).unflatten(0, (-1, copies))
        grid = grid.expand(batch, -1, -1, -1, -1).flatten(0, 1)
        repeated = images.repeat_interleave(copies, 0)
        return F.grid_sample(repeated, grid, padding_mode="zeros", align_corners=False)


class Averaging:
    """Lets `network` average its outputs over copies of each input, under its own name and parameters.

    In evaluation mode all samples have the same draws, spread evenly, so that outputs and curvature are those of one
    function. In training mode each sample has these, moved around the cube by a fresh shift: each draw is uniform, and
    together they are as even (Cranley and Patterson, 1976).

    Args:
        network: maps images `(B, C, H, W)` to outputs `(B, K)`.
        generator: of the draws in training mode.

    Raises:
        ValueError: a network that averages over copies already.
    """

    def __init__(self, network: nn.Module, affine: Affine, generator: torch.Generator | None = None):
        if hasattr(network, COPIES):
            raise ValueError("the network has an invariance already: give it one once, or make a new network")
        self.affine, self.generator = affine, generator
        network.add_module("invariance", affine)
        setattr(network, COPIES, affine.copies)
        spread = torch.quasirandom.SobolEngine(len(GENERATORS), scramble=True, seed=0).draw(affine.copies)
        self.even = (2 * spread - 1)[None]
        network.register_forward_pre_hook(self._expand)
        network.register_forward_hook(self._average)

    def _expand(self, network: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
        (images,) = inputs
        draws = self.even.to(images)
        if network.training:
            device = images.device if self.generator is None else self.generator.device
            shift = torch.rand(len(images), 1, len(GENERATORS), generator=self.generator, device=device)
            draws = (draws + 1 + 2 * shift.to(images)) % 2 - 1
        return self.affine(images, draws)

    def _average(self, network: nn.Module, inputs: tuple[Tensor, ...], outputs: Tensor) -> Tensor:
        return outputs.unflatten(0, (-1, self.affine.copies)).mean(1)
