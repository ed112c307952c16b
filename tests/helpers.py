"""What several test files share: comparison by relative error, small networks, small data."""

import torch
from torch import Tensor, nn

from ellarepro.network import Network, build_network
from ellarepro.settings.parts import OptimiserSettings, WeightSettings


def relative_error(got: Tensor, wanted: Tensor) -> float:
    """|got - wanted| / |wanted| in the Frobenius norm; the plain error where `wanted` is zero."""
    assert got.shape == wanted.shape, f"shapes differ: {tuple(got.shape)} and {tuple(wanted.shape)}"
    norm = wanted.norm().item()
    return (got - wanted).norm().item() / (norm or 1.0)


def assert_close(got: Tensor, wanted: Tensor, tolerance: float = 1e-10) -> None:
    """Relative error at most `tolerance`; a NaN fails."""
    error = relative_error(got, wanted)
    assert error <= tolerance, f"relative error {error:.2e}, allowed {tolerance:.0e}"


def perturb_biases(model: nn.Module, std: float = 0.3) -> nn.Module:
    """Biases away from their initial zero, so that a test can see them; returns the model."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.rpartition(".")[2] == "bias":
                p.normal_(std=std)
    return model


def small_network(layer: str = "f_fc_conv", seed: int = 0, **changes) -> Network:
    """A network of `build_network` at alpha 1 on 8x8 images, in float64, with biases that are not zero."""
    torch.manual_seed(seed)
    options = {"in_channels": 1, "num_classes": 3, "alpha": 1, "image_size": 8} | changes
    return perturb_biases(build_network(layer, **options)).double()


def weight_settings(
    epochs: int, batch_size: int, kind: str = "SGD", plateau: float | None = None, momentum: float = 0.0, **rate
) -> WeightSettings:
    """Training by the class `kind` of torch.optim, or ours; `rate` are keys of `OptimiserSettings`."""
    ours = kind == "NaturalGradient"
    arguments = ({} if ours else {"fused": True}) | ({"momentum": momentum} if momentum else {})
    home = "ellarepro.training.natural_gradient" if ours else "torch.optim"
    rule = OptimiserSettings(f"{home}.{kind}", **rate, arguments=arguments)
    return WeightSettings(epochs, batch_size, rule, plateau)


def small_data(size: int = 6, seed: int = 1, channels: int = 1, side: int = 8, classes: int = 3):
    """Random images `(size, channels, side, side)` in float64, and labels `(size,)`."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(size, channels, side, side, generator=generator, dtype=torch.float64)
    return images, torch.randint(classes, (size,), generator=generator)


class Probe(nn.Module):
    """A layer under test, then a fixed nonlinear map to logits: nothing but the layer can be trained."""

    def __init__(self, layer: nn.Module, in_shape: tuple[int, ...], classes: int = 3):
        super().__init__()
        self.layer = layer.double()
        perturb_biases(layer)
        features = self.layer(torch.zeros(1, *in_shape, dtype=torch.float64)).numel()
        self.register_buffer("readout", torch.randn(features, classes, dtype=torch.float64))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.tail(self.layer(inputs))

    def tail(self, outputs: Tensor) -> Tensor:
        """Logits `(B, K)` from the layer's outputs."""
        return outputs.sin().flatten(1) @ self.readout


def parameter_slices(model: nn.Module) -> dict[str, slice]:
    """Where each trainable tensor lies in the flat vector of all, in the order of `model.parameters()`."""
    slices, start = {}, 0
    for name, p in model.named_parameters():
        if p.requires_grad:
            slices[name] = slice(start, start + p.numel())
            start += p.numel()
    return slices
