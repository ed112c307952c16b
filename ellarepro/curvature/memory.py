"""What the factors of a fit will take, known before it starts."""

import os
from pathlib import Path

import torch
from torch import Tensor, nn

import ellarepro.layers.stock  # noqa: F401 (registers the rules of stock layers)
from ellarepro.curvature.hooks import evaluation_mode, forward_hooks
from ellarepro.curvature.rule import rules_of

_FLOAT = 4
_MEMINFO = Path("/proc/meminfo")


class FactorsTooLarge(MemoryError):
    """The factors of a fit would not fit into the memory that is free; the message says what to change."""


@torch.no_grad()
def factor_bytes_forecast(model: nn.Module, sample: Tensor, structure: str = "kron") -> dict[str, int]:
    """Bytes of each layer's float32 factors in a fit, by layer name, from one forward pass of `sample (1, ...)`."""
    rules = rules_of(model)
    layers = {name: model.get_submodule(name) for name in rules}
    sizes: dict[str, int] = {}

    def measure(name: str, layer_inputs: Tensor, output: Tensor) -> None:
        # Rows of a tensor without storage: shapes are all that is asked for.
        rule, layer = rules[name], layers[name]
        exact = {p: getattr(layer, p).numel() for p in ("bias", *rule.pointwise) if _trains(layer, p)}
        entries = 0
        if _trains(layer, "weight") and "weight" not in rule.pointwise:
            inputs = rule.input_rows(layer_inputs.to("meta"))
            outputs = rule.output_rows(output.to("meta"))
            groups, width_in, width_out = inputs.shape[0], inputs.shape[-1], outputs.shape[-1]
            output_groups = outputs.shape[0] if structure == "kron_blockwise" else 1
            kron = groups * width_in**2 + output_groups * width_out**2
            entries = layer.weight.numel() if structure == "diag" else kron
            if structure != "diag" and rule.bias_is_output and outputs.ndim == 3:
                exact.pop("bias", None)
        entries += sum(exact.values()) if structure == "diag" else sum(width**2 for width in exact.values())
        sizes[name] = _FLOAT * entries

    with forward_hooks(layers, measure), evaluation_mode(model):
        model(sample)
    return sizes


def _trains(layer: nn.Module, name: str) -> bool:
    parameter = getattr(layer, name, None)
    return isinstance(parameter, nn.Parameter) and parameter.requires_grad


def free_bytes(device: torch.device) -> int:
    """Memory that can be had on `device` now; on systems that do not tell, all that is built in."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if _MEMINFO.exists():
        # Not the free pages: those leave out the file cache, which gives way when memory is asked for.
        fields = dict(line.split(":") for line in _MEMINFO.read_text().splitlines())
        return int(fields["MemAvailable"].split()[0]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def check_memory(model: nn.Module, sample: Tensor, structure: str, free: int | None = None) -> str:
    """One line on what a fit will take.

    Args:
        sample: one input `(1, ...)`, on the model's device.
        free: bytes taken to be free; measured if not given.

    Raises:
        FactorsTooLarge: twice the factors (their largest is copied to be decomposed) exceed what is free.
    """
    sizes = factor_bytes_forecast(model, sample, structure)
    largest = max(sizes, key=sizes.get)
    needed = sum(sizes.values()) + sizes[largest]
    free = free_bytes(sample.device) if free is None else free
    if needed > free:
        raise FactorsTooLarge(
            f"the curvature factors need about {needed / 1e9:.1f} GB ({largest}: {sizes[largest] / 1e9:.1f} GB), "
            f"{free / 1e9:.1f} GB are free on {sample.device}; lower alpha, take layer=f_fc for fc, or objective=map"
        )
    return f"curvature factors {sum(sizes.values()) / 1e6:.1f} MB, {needed / 1e6:.1f} MB at the peak of a fit"
