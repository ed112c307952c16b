"""What layers see and give in a forward pass."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

from torch import Tensor, nn


@contextmanager
def forward_hooks(layers: Mapping[str, nn.Module], see: Callable[[str, Tensor, Tensor], None]) -> Iterator[None]:
    """Within the context, every forward pass of a layer is followed by `see(name, input, output)`."""

    def hook(name: str) -> Callable[[nn.Module, tuple, Tensor], None]:
        return lambda module, args, output: see(name, args[0], output)

    with ExitStack() as hooks:
        for name, layer in layers.items():
            hooks.callback(layer.register_forward_hook(hook(name)).remove)
        yield
