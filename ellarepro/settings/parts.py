"""What the parts of a run can be told: each setting with its type, range, default and meaning, checked when it is made.

Nothing heavy is imported here, so that a configuration can be checked before PyTorch is loaded.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

from ellarepro.settings.ranges import Settings, same_as, setting

BLOCK_STRUCTURES = ("kron", "kron_blockwise", "diag")
KERNEL_STRUCTURES = ("kernel", "kernel_batches")
STRUCTURES = (*BLOCK_STRUCTURES, "full", *KERNEL_STRUCTURES)
ENGINES = ("native", "asdl")
BASES = ("rbf", "posterior_mean")
SHIFTS, SCALES = ("shift_x", "shift_y"), ("scale_x", "scale_y")
TRANSFORMATIONS = {
    "all": (*SHIFTS, "rotation", *SCALES, "shear"),
    "shifts": SHIFTS,
    "rotation": ("rotation",),
}
"""Choices of `objective.transformations` to the generators whose ranges start off zero (`symmetry/affine.py`)."""
DEFAULT_TOLERANCE = 1e-3
DEFAULT_RELAXATION = 0.1
"""Scale at which a path that is not equivariant starts beside one that is, unless said otherwise."""
LARGEST_BATCH = 10**6


@dataclass(frozen=True)
class OptimiserSettings(Settings):
    """optimiser=…: the class that moves the weights, and its rate: a cosine from `lr` to `min_lr`, one value a step.

    `warmup` lets it rise on a line first, over that many epochs: some starts are ended by their first full steps.

    `relative` multiplies it by each tensor's root mean square at initialisation (a bias by its weight's). Adam moves
    every weight by about its learning rate, whatever the size of gradient and weight; F-FC factors, whose weights are
    up to thirty times smaller than those of a convolution, would otherwise change that much faster and fit first.

    Raises:
        ValueError: a value out of its range, or `min_lr` above `lr`.
    """

    # A class, torch.optim.SGD say. What it takes beside lr are further keys of the file.
    _target_: str
    lr: float = setting("learning rate at the start", above=0, most=1e30)
    min_lr: float = setting("learning rate at the end of the cosine", 1e-6, least=0)
    warmup: float = setting("epochs over which the learning rate rises first; 0: none", 0.0, least=0, most=10**6)
    relative: bool = setting("whether lr is multiplied by each tensor's root mean square at initialisation", False)
    # In a configuration, these are keys beside the others.
    arguments: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""

    def check(self) -> None:
        if self.min_lr > self.lr:
            raise ValueError(f"min_lr must be at most lr, which is {self.lr}; got {self.min_lr}")


@dataclass(frozen=True)
class WeightSettings:
    """How the weights are trained.

    Args:
        epochs: passes over the training set.
        batch_size: training images a step.
        plateau: share of the loss of guessing above which the prior has no part, see `Objective`.
    """

    epochs: int
    batch_size: int
    optimiser: OptimiserSettings
    plateau: float | None = None


@dataclass(frozen=True)
class FitSettings(Settings):
    """How the curvature is fitted.

    Raises:
        ValueError: a value out of its range, or one that has no meaning beside another.
    """

    structure: str = setting(
        "structure of the curvature: kron is the paper's; full is exact, for small networks; kernel is exact, for few "
        "images; kernel_batches bounds the evidence by the kernel of each batch",
        "kron",
        choices=STRUCTURES,
    )
    tolerance: float = setting(
        "probability mass of each image that exact class passes may leave out; 0 takes all passes",
        DEFAULT_TOLERANCE,
        least=0,
        below=1,
    )
    batch_size: int = setting(
        "images in a batch of a curvature fit; with exact passes it changes rounding only",
        150,
        least=1,
        most=LARGEST_BATCH,
    )
    fit_size: int | None = setting(
        "images in a curvature fit, scaled up to the training set; null takes all", None, least=1
    )
    passes: int | str = setting(
        "backward passes of a fit: exact (K - 1 for K classes), or how many sampled ones",
        "exact",
        least=1,
        choices=("exact",),
    )
    engine: str = setting(
        "what fits the curvature: native, or asdl as a check, which is slower and takes every class pass",
        "native",
        choices=ENGINES,
    )

    def check(self) -> None:
        if self.engine == "asdl" and not self.has_blocks:
            raise ValueError(f"engine must be native for structure={self.structure}; got 'asdl'")
        if self.sampled and (self.engine == "asdl" or self.structure == "full"):
            choice = "engine=asdl" if self.engine == "asdl" else f"structure={self.structure}"
            raise ValueError(f"passes must be exact for {choice}; got {self.passes}")

    @property
    def has_blocks(self) -> bool:
        """Whether the curvature comes as one block a tensor, which is what a posterior is made of."""
        return self.structure in BLOCK_STRUCTURES

    @property
    def takes_class_passes(self) -> bool:
        """Whether `tolerance` has a meaning: passes are exact, a class each, and native."""
        return self.structure != "full" and self.sampled is None and self.engine == "native"

    @property
    def sampled(self) -> int | None:
        """How many sampled passes; None for exact ones."""
        return self.passes if isinstance(self.passes, int) else None


DEFAULT_FIT = FitSettings()


def check_has_gradient(fit: FitSettings, beside: str) -> None:
    """ValueError where the evidence of a `fit` has no gradient in the ranges of an invariance, as `beside` needs."""
    if fit.structure not in ("kron", "kron_blockwise") or fit.engine != "native":
        got = f"structure={fit.structure}, engine={fit.engine}"
        raise ValueError(f"structure must be kron or kron_blockwise for {beside}, and engine native; got {got}")
    if fit.fit_size is not None:
        raise ValueError(f"fit_size must be null for {beside}; got {fit.fit_size}")


@dataclass(frozen=True)
class BracketSettings(Settings):
    """How the exact log-determinant is bounded (`evidence/bracket.py`).

    Raises:
        ValueError: a value out of its range.
    """

    rows: int = setting("rows of the kernel, drawn of all data", 2000, least=1)
    fresh: int = setting("rows drawn beside them, for the upper bound", 500, least=1)


@dataclass(frozen=True)
class LaplaceSettings(Settings):
    """objective=laplace: after epoch `burn_in` and every `frequency` from there, `steps` of Adam on the log precisions.

    Raises:
        ValueError: a value out of its range.
    """

    burn_in: int = setting("epoch after which the precisions first move", least=1)
    frequency: int = setting("epochs between fits of the curvature", least=1)
    steps: int = setting("Adam steps on the log precisions a fit", least=1, most=10**5)
    lr: float = setting("learning rate of the steps on the log precisions", 0.1, above=0, most=10)
    tied: bool = setting("whether the factors of a path share one precision", False)
    fit: FitSettings = DEFAULT_FIT
    hyper_fit_size: int | None = setting(
        "images in each fit but the last, scaled up to the training set; null: as many as in the last", None, least=1
    )
    predictive_samples: int = setting("functions drawn for the linearised predictive; 0 leaves it out", 0, least=0)
    bracket: int | None = setting(
        "rows of the kernel that bounds the evidence (docs/curvature.md); null leaves bounds out", None, least=1
    )
    bracket_fresh: int = same_as(BracketSettings, "fresh")
    name: str = "laplace"

    def check(self) -> None:
        if self.predictive_samples and not self.fit.has_blocks:
            got = self.predictive_samples
            raise ValueError(f"predictive_samples must be 0 for structure={self.fit.structure}; got {got}")

    @property
    def bounds(self) -> BracketSettings | None:
        """How the evidence is bounded; None where it is not."""
        if self.bracket is None:
            return None
        return BracketSettings(self.bracket, self.bracket_fresh)

    def due(self, epoch: int) -> bool:
        """Whether the precisions move after `epoch`, counted from 1."""
        return epoch >= self.burn_in and (epoch - self.burn_in) % self.frequency == 0


@dataclass(frozen=True)
class LilaSettings(LaplaceSettings):
    """objective=lila: as laplace, with the ranges of an affine invariance of the images.

    Raises:
        ValueError: a value out of its range, or a fit that has no gradient in the ranges.
    """

    copies: int = setting("transformed copies of an image that outputs are averaged over", 8, least=1, most=1000)
    transformations: str = setting("which have a range; the others stay at zero", "all", choices=tuple(TRANSFORMATIONS))
    start: float = setting("range of each transformation at the start", 0.1, above=0, most=3.2)
    range_lr: float = setting("learning rate of Adam on the ranges; 0 fixes them", 0.05, least=0, most=1)
    name: str = "lila"

    def check(self) -> None:
        super().check()
        check_has_gradient(self.fit, "lila")


@dataclass(frozen=True)
class VariationalSettings(Settings):
    """objective=vi: how the posterior is learned.

    Raises:
        ValueError: a value out of its range.
    """

    burn_in: int = setting("epoch after which the weights have a posterior; MAP until then", 1, least=1)
    lr: float = setting("learning rate of Adam on the posterior's factors", 0.02, above=0, most=1)
    every: int = setting("steps of the weights for each step of the factors", 8, least=1)
    draws: int = setting("draws of the weights for the bound and the prediction at the end", 8, least=1)
    fit: FitSettings = DEFAULT_FIT
    tied: bool = setting("whether the factors of a path share one precision", False)
    name: str = "vi"


@dataclass(frozen=True)
class AnchorSettings(Settings):
    """anchors.…: a few positions where sparse layers have their parameters (Section 3.1), and a basis.

    `learn_omega` says whether omega is a parameter, one a basis, or stays fixed.

    Raises:
        ValueError: a value out of its range, or a `noise` of zero where it is needed.
    """

    basis: str = setting("rbf: exp(-omega^2 |x - z|^2), or the Gaussian process's posterior mean", "rbf", choices=BASES)
    omega: float = setting("inverse lengthscale at the start, in 1 / pixel", 1.0, above=0, most=1e3)
    noise: float = setting("noise variance of the values at anchors, for posterior_mean; 0: no noise", 1e-3, least=0)
    share: float = setting("anchors of a map as a share of its positions (S-FC)", 0.5, above=0, most=1)
    per_filter: int = setting("anchors of a 3x3 filter (S-CONV)", 4, least=1, most=9)
    learn_omega: bool = False

    def check(self) -> None:
        if self.noise == 0 and self.learn_omega and self.basis == "posterior_mean":
            raise ValueError(
                "noise must be positive where posterior_mean meets a learned omega "
                "(towards omega = 0 all anchors say the same); got 0"
            )

    def count(self, grid: tuple[int, int]) -> int:
        """Anchors of a map of this shape; at least one."""
        return max(round(self.share * prod(grid)), 1)
