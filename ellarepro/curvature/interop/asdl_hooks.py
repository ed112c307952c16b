"""The project's rules inside asdl (distribution `asdfghjkl`): the only import of it.

asdl knows layers by a private tuple and an isinstance chain, skips the rest in silence, and leaves attributes behind.
`AsdlPasses` puts the rules where asdl looks, lets asdl's own loop take the class passes, and undoes both. It gives the
same factors as `ggn.GGN`, more slowly: a second implementation of everything but the rules, to check against.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import asdl.core
import torch
from asdl.fisher import FisherConfig, get_fisher_maker
from asdl.grad_maker import LOSS_CROSS_ENTROPY
from asdl.matrices import FISHER_EXACT, SHAPE_KRON
from asdl.operations import Operation
from torch import Tensor, nn

from ellarepro.curvature.accumulators import BlockAccumulator
from ellarepro.curvature.hooks import evaluation_mode
from ellarepro.curvature.layer_calls import calls_of
from ellarepro.curvature.structures import Structure

_LEFT_BEHIND = ("fisher", "_is_full_backward_hook", "_original_requires_grad")


class AsdlPasses(BlockAccumulator):
    """As `GGN` at tolerance 0, with the forward and the K backward passes taken by asdl."""

    def update(self, inputs: Tensor, weights: Tensor | None = None) -> Tensor:
        """Add a batch of `inputs (B, ...)`, all of which count once; returns its logits `(B, K)`, detached."""
        self.gathered += len(inputs)
        parts = self.parts_by_layer()
        with evaluation_mode(self.model):
            calls = calls_of(self.model, inputs)
        wanting = {c.layer: c.output_gradient for c in calls.values() if parts[c.layer].wants_gradients(c.inputs)}
        with (
            _rules_registered(parts, wanting),
            _attributes_removed(self.model),
            evaluation_mode(self.model),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")  # torch's, about the kind of hooks that asdl uses
            config = FisherConfig(
                fisher_type=FISHER_EXACT, loss_type=LOSS_CROSS_ENTROPY, fisher_shapes=[SHAPE_KRON], data_size=1
            )
            maker = get_fisher_maker(self.model, config)
            maker.setup_model_call(self.model, inputs.detach().requires_grad_(inputs.is_floating_point()))
            logits, _ = maker.forward_and_backward()
        return logits.detach()

    def most_passes(self, width: int) -> int:
        return width


class _RuleOperation(Operation):
    """Hands what asdl's hooks see to the structure that gathers a layer's factors."""

    def __init__(self, module: nn.Module, op_names: list[str], model_for_kernel: nn.Module | None = None):
        super().__init__(module, op_names, model_for_kernel)
        self.part, self.gradients = _current_parts[module], _current_gradients.get(module)

    @torch.no_grad()
    def forward_post_process(self, in_data: Tensor, out_data: Tensor) -> None:
        self.part.add_inputs(in_data, self.gradients)
        self.part.keep_inputs(in_data)

    @torch.no_grad()
    def backward_pre_process(self, out_grads: Tensor, vector: Tensor | None = None) -> None:
        self.part.add_gradients(out_grads)


_current_parts: dict[nn.Module, Structure] = {}
_current_gradients: dict[nn.Module, Tensor] = {}


@contextmanager
def _rules_registered(parts: dict[nn.Module, Structure], gradients: dict[nn.Module, Tensor]) -> Iterator[None]:
    """asdl finds just the layers of `parts`, and treats each by its rule; `gradients` are those of `add_inputs`."""
    known, lookup = asdl.core._supported_module_classes, asdl.core.get_op_class
    asdl.core._supported_module_classes = tuple({type(module) for module in parts})
    asdl.core.get_op_class = lambda module: _RuleOperation if module in parts else None
    _current_parts.update(parts)
    _current_gradients.update(gradients)
    try:
        yield
    finally:
        asdl.core._supported_module_classes, asdl.core.get_op_class = known, lookup
        _current_parts.clear()
        _current_gradients.clear()


@contextmanager
def _attributes_removed(model: nn.Module) -> Iterator[None]:
    """What asdl leaves on modules and parameters goes, and trainable parameters stay trainable."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    before = {id(owner): set(vars(owner)) for owner in [*model.modules(), *model.parameters()]}
    try:
        yield
    finally:
        for p in trainable:
            p.requires_grad_(True)
        for owner in [*model.modules(), *model.parameters()]:
            for name in _LEFT_BEHIND:
                if name in vars(owner) and name not in before[id(owner)]:
                    delattr(owner, name)
