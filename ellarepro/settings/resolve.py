"""From a checked configuration to what the library's constructors take; what they refuse gets its key put in front."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import torch

from ellarepro.data.tasks import OWN
from ellarepro.errors import UserError, nearest
from ellarepro.layers.groups import GROUPS
from ellarepro.network import LAYERS, options_of, priors_of
from ellarepro.settings.parts import (
    AnchorSettings,
    BracketSettings,
    FitSettings,
    LaplaceSettings,
    OptimiserSettings,
    WeightSettings,
)
from ellarepro.training.optimisers import states_of


def check_combination(config: Mapping[str, Any]) -> None:
    """Refuse choices that are possible by themselves and not together.

    Raises:
        UserError: names the keys, the reason, and what goes together.
    """
    layer, prior, options = config["layer"]["name"], config["prior"]["name"], options_of(config["layer"]["name"])
    if prior not in priors_of(layer):
        _refuse_prior(layer, prior)
    if config["group"] is not None and "group" not in options:
        others = ", ".join(name for name in LAYERS if "group" in options_of(name))
        raise UserError(
            f"group={config['group']} is for layers with a gconv path, which share weights over a group; "
            f"layer={layer} has none: take layer={others}, or leave group out"
        )
    if config["group"] is not None and config["group"] not in GROUPS:
        raise UserError(
            f"group must be one of {', '.join(GROUPS)}; got {config['group']!r}{nearest(config['group'], GROUPS)}"
        )
    if config["anchors"] is not None and "anchors" not in options:
        raise UserError(f"anchors are for sparse layers; layer={layer} has none")
    _check_path(config["dataset"])
    states_of(weight_settings(config).optimiser)
    laplace_settings(config)
    anchor_settings(config)


def _check_path(dataset: Mapping[str, Any]) -> None:
    name, path = dataset["name"], dataset["path"]
    if name == OWN and path is None:
        raise UserError("dataset=npz needs dataset.path=FILE.npz, the file with your images (docs/extending.md)")
    if name != OWN and path is not None:
        raise UserError(f"dataset.path={path} has no meaning for dataset={name}; it is for dataset={OWN}")


def _refuse_prior(layer: str, prior: str) -> None:
    reason = {
        "theta": "its parameters are not weights theta but values u at anchors and inverse lengthscales omega",
        "u": "it has no anchors, its parameters are the weights theta themselves",
        "omega": "it has no basis functions, so no inverse lengthscales omega",
    }[prior]
    others = ", ".join(name for name in LAYERS if prior in priors_of(name))
    raise UserError(
        f"prior={prior} is not possible with layer={layer}: {reason}; layer={layer} takes "
        f"prior={' or '.join(priors_of(layer))}, and prior={prior} is for layer={others}"
    )


@contextmanager
def keyed(group: str) -> Iterator[None]:
    """A constructor's refusal with the keys of `group` in place of its own arguments.

    Raises:
        UserError: in place of its ValueError.
    """
    try:
        yield
    except ValueError as error:
        raise UserError(f"{group}.{error}" if re.match(r"[a-z_]+ must ", str(error)) else str(error)) from error


def anchor_settings(config: Mapping[str, Any]) -> AnchorSettings | None:
    """How sparse layers are anchored; None where the layer has no anchors.

    Raises:
        UserError: an impossible combination.
    """
    if config["anchors"] is None:
        return None
    with keyed("anchors"):
        return AnchorSettings(**config["anchors"], learn_omega=config["prior"]["name"] == "omega")


def weight_settings(config: Mapping[str, Any]) -> WeightSettings:
    """How the weights are trained.

    Raises:
        UserError: an impossible combination.
    """
    arguments = dict(config["optimiser"])
    known = {f.name: arguments.pop(f.name) for f in fields(OptimiserSettings) if f.name in arguments}
    with keyed("optimiser"):
        optimiser = OptimiserSettings(**known, arguments=arguments)
    return WeightSettings(config["epochs"], config["batch_size"], optimiser, config["prior"]["plateau"])


def laplace_settings(config: Mapping[str, Any]) -> LaplaceSettings | None:
    """How the precisions are learned; None for MAP.

    Raises:
        UserError: an impossible combination.
    """
    objective = config["objective"]
    if objective["name"] == "map":
        return None
    with keyed("objective"):
        fit = FitSettings(**{f.name: objective[f.name] for f in fields(FitSettings)})
        own = {f.name: objective[f.name] for f in fields(LaplaceSettings) if f.name not in ("fit", "bracket")}
        return LaplaceSettings(fit=fit, bracket=_bracket_settings(objective), **own)


def _bracket_settings(objective: Mapping[str, Any]) -> BracketSettings | None:
    if objective["bracket"] is None:
        return None
    return BracketSettings(objective["bracket"], objective["bracket_batch_size"], objective["bracket_batches"])


def device_of(config: Mapping[str, Any]) -> torch.device:
    """The device of `device=`; `auto` is CUDA where there is one.

    Raises:
        UserError: a device that is not there, or a key that means nothing there.
    """
    device = _device_named(config["device"])
    for key in ("replay", "tf32"):
        if config[key] and device.type != "cuda":
            raise UserError(f"{key}=true has a meaning on a CUDA device only; this run is on {device}")
    return device


def _device_named(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        found = torch.cuda.device_count()
        cuda = f" and cuda:0 to cuda:{found - 1}" if found else "; no CUDA device was found"
        raise UserError(f"device={name} is not usable here: possible are auto, cpu{cuda}") from error
    return device
