"""From settings to what adds up a curvature as they say."""

import torch
from torch import nn

from ellarepro.curvature.accumulators import Accumulator
from ellarepro.curvature.exact import FullAccumulator
from ellarepro.curvature.ggn import GGN
from ellarepro.curvature.kernel import KernelAccumulator
from ellarepro.curvature.likelihood import Classification, Likelihood
from ellarepro.settings.parts import KERNEL_STRUCTURES, FitSettings


def accumulator_of(
    model: nn.Module,
    settings: FitSettings,
    generator: torch.Generator | None = None,
    likelihood: Likelihood | None = None,
) -> Accumulator:
    """One fit of the curvature of `model`, still without data.

    Args:
        generator: of sampled passes, on the device of the data.
        likelihood: `Classification` if not given.

    Raises:
        UnclaimedParameterError: a trainable parameter that no rule claims.
        ValueError: `structure=full` for a large network, sampled passes without a generator,
            asdl for another likelihood than an unweighted `Classification`.
    """
    if settings.structure == "full":
        return FullAccumulator(model, likelihood)
    if settings.structure in KERNEL_STRUCTURES:
        batch_size = settings.batch_size if settings.structure == "kernel_batches" else None
        return KernelAccumulator(model, batch_size, settings.tolerance, settings.sampled, generator, likelihood)
    if settings.engine == "asdl":
        if likelihood is not None and not (type(likelihood) is Classification and likelihood.class_weights is None):
            raise ValueError(f"engine must be native for {type(likelihood).__name__.lower()}, got 'asdl'")
        from ellarepro.curvature.interop.asdl_hooks import AsdlPasses  # asdl is imported only where it is asked for

        return AsdlPasses(model, settings.structure)
    return GGN(model, settings.structure, settings.tolerance, settings.sampled, generator, likelihood)
