"""What layers see and give in a forward pass, and the mode that the model is in meanwhile."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


@contextmanager
def forward_hooks(
    layers: Mapping[str, nn.Module], see: Callable[[str, Tensor, Tensor], Tensor | None]
) -> Iterator[None]:
    """Within the context, every forward pass of a layer is followed by `see(name, input, output)`.

    What `see` returns, if anything, goes on in the output's place. A layer that is called without a positional argument
    raises ValueError.
    """

    def hook(name: str) -> Callable[[nn.Module, tuple, Tensor], Tensor | None]:
        def after_forward(module: nn.Module, args: tuple, output: Tensor) -> Tensor | None:
            if not args:
                raise ValueError(f"layer {name} is called by keyword: give its input as a positional argument")
            return see(name, args[0], output)

        return after_forward

    with ExitStack() as hooks:
        for name, layer in layers.items():
            hooks.callback(layer.register_forward_hook(hook(name)).remove)
        yield


def generic_sum(outputs: Tensor) -> Tensor:
    """One number whose gradient is another one, and not zero, in every entry of `outputs`."""
    weights = torch.linspace(1, 2, outputs.numel(), dtype=outputs.dtype, device=outputs.device)
    return (outputs * weights.view_as(outputs)).sum()


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Within the context no module is in training mode; afterwards each is in the mode it was in.

    The curvature and the evidence are those of one function of a sample: dropout would draw another one at each pass,
    and batch normalisation would change a sample's output with its batch mates, and its own statistics with each pass.

    Raises:
        ValueError: batch normalisation without running statistics, which has no such mode; half precision.
    """
    for name, p in model.named_parameters():
        if p.dtype not in (torch.float32, torch.float64):
            raise ValueError(f"{name} is {p.dtype}: a curvature needs float32 or float64, model.float()")
    if torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"):
        raise ValueError("a curvature needs float32 or float64: fit it outside of torch.autocast")
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and module.running_mean is None:
            raise ValueError(
                f"{type(module).__name__} {name} has no running statistics, so that a sample's output depends on its "
                "batch mates: build it with track_running_stats=True, or take nn.GroupNorm"
            )
    with _modes_kept(model):
        model.eval()
        yield


@contextmanager
def training_mode(model: nn.Module) -> Iterator[None]:
    """Within the context the model is in training mode; afterwards each module is in the mode it was in.

    A module in evaluation mode within a model in training mode was put there, a frozen normalisation say, and stays.
    """
    with _modes_kept(model):
        if not model.training:
            model.train()
        yield


@contextmanager
def _modes_kept(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
