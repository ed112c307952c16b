"""Whether a network is one that a curvature can be of; what a check did not see it does not pass.

A gradient of zero hides what its rule accounts for, and a head at zero what samples see of each other. So each check is
made at the network's weights and at others, moved by noise of their own size.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ellarepro.curvature.ggn import GGN
from ellarepro.curvature.hooks import evaluation_mode
from ellarepro.curvature.layer_calls import Call, calls_and_function
from ellarepro.curvature.likelihood import Classification, Likelihood
from ellarepro.curvature.memory import out_of_memory
from ellarepro.curvature.rule import ReducedRule

CHECKED = 4
"""Samples on which a network is checked."""
_ALLOWED = 1e-3
"""Relative error of a gradient that rounding in float32 may leave."""
_ROUNDING = 1e-9
"""Part of the largest Hessian of several samples that rounding in float64 may leave in each."""
_FLOOR = 1e-2
"""Part of the gradient at a layer's output below which its parameters' gradients count as zero."""
_MOVES = 4
"""Other weights that are tried, at most, until every parameter has had a gradient."""


def check_function(model: nn.Module, inputs: Tensor, likelihood: Likelihood | None = None) -> None:
    """Refuse a network that is no function of one sample, whatever its layers are.

    Args:
        inputs: samples `(B, ...)`, of which a few are taken.
        likelihood: `Classification` if not given.

    Raises:
        ValueError: inputs that it does not take, or changes in place; outputs that are not of the likelihood's form,
            are random, or depend on the other samples of a batch.
    """
    few, generator = _few(inputs), _generator(inputs)
    with evaluation_mode(model):
        _check_forward(model, few, likelihood or Classification())
        _check_independence(model, few)
        with _moved(model, generator):
            _check_independence(model, few)


def check_gradients(model: nn.Module, inputs: Tensor, likelihood: Likelihood | None = None) -> None:
    """As `check_function`, and refuse a network for whose gradients the layers' rules do not account.

    The gradient of each parameter by the whole network is set beside that of its layer's rows. They differ where a
    weight is also used outside of its layer's call (tied by hand), where a hook or an assigned forward changes what the
    layer does, or where a rule is wrong.

    Raises:
        UnclaimedParameterError: a trainable parameter that no rule claims.
        ValueError: as said, and what `GGN` refuses; it names the parameter.
    """
    few, generator, likelihood = _few(inputs), _generator(inputs), likelihood or Classification()
    ggn = GGN(model, passes=1, generator=generator, likelihood=likelihood)
    with evaluation_mode(model):
        _check_forward(model, few, likelihood)
        # What it refuses by itself, it says more clearly; by two sizes, as there may be as many positions as samples.
        ggn.update(few)
        ggn.update(few[1:])
        _check_independence(model, few)
        unseen = _check_rules(model, few)
        for _ in range(_MOVES):
            with _moved(model, generator):
                _check_independence(model, few)
                unseen &= _check_rules(model, few)
            if not unseen:
                break


def check_likelihood(model: nn.Module, inputs: Tensor, targets: Tensor, likelihood: Likelihood) -> None:
    """Refuse a likelihood whose Hessian, or whose columns, are not those of its losses, sample by sample.

    They are compared at the network's outputs, and at these made smaller: sure of its classes, it would hide them.

    Raises:
        ValueError: as said; or targets that it does not take.
    """
    for few, theirs in zip(inputs.split(CHECKED), targets.split(CHECKED), strict=True):
        with evaluation_mode(model), torch.no_grad():
            outputs = model(few).double()
        likelihood.check_targets(theirs, outputs)
        size = outputs.square().mean(1, keepdim=True).sqrt().clamp_min(1.0)
        _check_hessian(torch.cat([outputs, outputs / size]), torch.cat([theirs, theirs]), likelihood)


def _check_hessian(outputs: Tensor, targets: Tensor, likelihood: Likelihood) -> None:
    outputs.requires_grad_()
    with torch.enable_grad():
        (slopes,) = torch.autograd.grad(likelihood.losses(outputs, targets).sum(), outputs, create_graph=True)
        rows = [torch.autograd.grad(one.sum(), outputs, retain_graph=True)[0] for one in slopes.unbind(1)]
    wanted, weights = torch.stack(rows, 1), likelihood.weights(targets)
    columns = likelihood.columns(outputs.detach(), 0.0, None, None)
    columns.weights = weights
    root = torch.stack([columns.weighted(index) for index in range(int(columns.passes_needed.max()))], 2)
    own = likelihood.hessian(outputs.detach()) * (1 if weights is None else weights.to(outputs)[:, None, None])
    sizes = wanted.flatten(1).norm(dim=1)
    for what, found in (("hessian", own), ("columns", root @ root.mT)):
        if ((found - wanted).flatten(1).norm(dim=1) > _ALLOWED * sizes + _ROUNDING * sizes.max()).any():
            raise ValueError(
                f"{type(likelihood).__name__}.{what} is not the second derivative of its losses in the outputs: "
                "override losses, weights, hessian and columns together"
            )


def _few(inputs: Tensor) -> Tensor:
    """`CHECKED` samples: the first, and again, moved where they are numbers, where there are fewer."""
    few = inputs[torch.arange(CHECKED, device=inputs.device) % len(inputs)].detach()
    if len(inputs) < CHECKED and few.is_floating_point():
        noise = torch.randn(few.shape, generator=_generator(inputs), dtype=few.dtype, device=few.device)
        few[len(inputs) :] += noise[len(inputs) :] * few.square().mean().sqrt()
    return few


def _generator(inputs: Tensor) -> torch.Generator:
    return torch.Generator(inputs.device).manual_seed(0)


@contextmanager
def _moved(model: nn.Module, generator: torch.Generator) -> Iterator[None]:
    """Within the context trainable weights are moved by noise of half their own size, zeros as a start is drawn."""
    own = [(p, p.data) for p in model.parameters() if p.requires_grad]
    try:
        for p, data in own:
            noise = torch.randn(p.shape, generator=generator, dtype=p.dtype, device=p.device)
            # Never in place: these are the weights of whoever asks.
            size = data.square().mean().sqrt()
            p.data = data + noise * torch.where(size > 0, size / 2, data[:1].numel() ** -0.5)
        yield
    finally:
        for p, data in own:
            p.data = data


@torch.no_grad()
def _check_forward(model: nn.Module, inputs: Tensor, likelihood: Likelihood) -> None:
    given = inputs.clone()
    try:
        outputs = model(given)
    except (RuntimeError, IndexError) as error:
        if out_of_memory(error):
            raise
        weights = next(model.parameters()).dtype
        raise ValueError(
            f"the network, whose weights are {weights}, does not take inputs of {inputs.dtype} and shape "
            f"{tuple(inputs.shape)}: {error}"
        ) from error
    if not torch.equal(given, inputs):
        raise ValueError("the network changes its input in place: let it work on a copy, inputs.clone()")
    likelihood.check_outputs(outputs, len(inputs))
    if _differ(outputs, model(inputs)):
        raise ValueError(
            "the outputs of a sample are random even in evaluation mode, which no rule covers: make dropout "
            "nn.Dropout, or F.dropout(..., training=self.training)"
        )


@torch.no_grad()
def _check_independence(model: nn.Module, inputs: Tensor) -> None:
    among = model(inputs)
    beside_themselves = [model(one.expand_as(inputs).clone())[:1] for one in inputs.split(1)]
    if _differ(among, torch.cat(beside_themselves)) or _differ(among[1:], model(inputs[1:])):
        raise ValueError(
            "the outputs of a sample depend on the other samples of its batch: no rule covers this, as the curvature "
            "is a sum over samples; normalise over a sample, or by running statistics"
        )


def _differ(outputs: Tensor, others: Tensor) -> bool:
    """Whether the outputs of a sample are others by more than rounding; some that are not finite tell nothing."""
    error = (outputs - others).flatten(1).norm(dim=1)
    return bool((error > _ALLOWED * outputs.flatten(1).norm(dim=1).max()).any())


def _check_rules(model: nn.Module, inputs: Tensor) -> set[str]:
    """Check the gradients of all parameters; returns the names of those whose gradients are zero."""
    calls, function = calls_and_function(model, inputs)
    for call in calls.values():
        if isinstance(call.rule, ReducedRule):  # a layer takes the copies of a sample as it takes samples
            call.rule = call.rule.rule
    named = [
        (f"{layer}.{own}" if layer else own, call, own) for layer, call in calls.items() for own in call.parameters()
    ]
    values = [call.parameters()[own] for _, call, own in named]
    gradients = torch.autograd.grad(function, values)
    return {
        name
        for (name, call, own), wanted in zip(named, gradients, strict=True)
        if not _check_gradient(name, call, own, wanted)
    }


@torch.no_grad()
def _check_gradient(name: str, call: Call, parameter: str, wanted: Tensor) -> bool:
    """Refuse another gradient than `wanted`; returns whether there was one."""
    total, size = torch.zeros_like(wanted.flatten()), 0.0
    for sample in range(len(call.inputs)):  # one by one: the rows of a large vocabulary are large
        row = call.gradient_rows(parameter, slice(sample, sample + 1))[0]
        total, size = total + row, size + row.norm().item()
    size, least = max(size, wanted.norm().item()), _FLOOR * call.output_gradient.norm().item()
    # Some gradients are zero but for rounding, that of a bias before a normalisation, say.
    error = (total - wanted.flatten()).norm().item() / (max(size, least) or 1.0)
    if error > _ALLOWED:
        raise ValueError(
            f"the gradient of {name} by its layer's curvature rule differs from the network's "
            f"(relative error {error:.1e}): is it used outside of the layer's own call, or does a hook or an "
            "assigned forward change what the layer does?"
        )
    return size > least
