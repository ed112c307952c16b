"""From a resolved configuration to checked settings: whatever a user can get wrong is refused here, by key."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch

from ellarepro.errors import UserError
from ellarepro.layers.anchors import AnchorSettings
from ellarepro.network import LAYERS, PRIORS, priors_of
from ellarepro.training import LaplaceSettings, WeightSettings

OBJECTIVES = ("map", "laplace")
EXACT = "exact"
"""The `objective.passes=` that is no number of samples."""

# Whole numbers and the least that each may be; None stands for "not set" where the configuration allows it.
_WHOLE = {"alpha": 1, "epochs": 1, "batch_size": 1, "seed": 0, "threads": 1}
_NUMBERS = {"optimiser": ("lr", "min_lr", "momentum"), "objective": ("lr", "tolerance"), "prior": ("precision",)}
_WHOLE_OBJECTIVE = ("burn_in", "frequency", "steps", "batch_size", "fit_size", "predictive_samples")


def check(config: Mapping[str, Any]) -> None:
    """Refuse what no run can use.

    Raises:
        UserError: an unknown choice, or a value of the wrong kind; names the key, what was got and what is possible.
    """
    for group, possible in (("objective", OBJECTIVES), ("layer", LAYERS), ("prior", PRIORS)):
        if config[group]["name"] not in possible:
            raise UserError(f"{group}.name must be one of {', '.join(possible)}; got {config[group]['name']!r}")
    for key, least in _WHOLE.items():
        if not (key == "threads" and config[key] is None):
            _check_whole(key, config[key], least)
    _check_objective(config["objective"])
    for group, names in _NUMBERS.items():
        for name in names:
            _check_number(f"{group}.{name}", config[group].get(name, 0.0))
    _check_number("relaxation", config["relaxation"])
    if not config["prior"]["precision"] > 0:
        raise UserError(f"prior.precision must be positive; got {config['prior']['precision']}")
    _check_pair(config["layer"]["name"], config["prior"]["name"])


def _check_objective(objective: Mapping[str, Any]) -> None:
    for key in _WHOLE_OBJECTIVE:
        if objective.get(key) is not None:
            _check_whole(f"objective.{key}", objective[key], 0 if key == "predictive_samples" else 1)
    if objective.get("passes", EXACT) != EXACT:
        _check_whole("objective.passes", objective["passes"], 1, f", or {EXACT}")
    if not isinstance(tied := objective.get("tied", False), bool):
        raise UserError(f"objective.tied must be true or false; got {tied!r}")


def _check_pair(layer: str, prior: str) -> None:
    if prior in priors_of(layer):
        return
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


def anchor_settings(config: Mapping[str, Any]) -> AnchorSettings | None:
    """How sparse layers are anchored; None where the layer has no anchors.

    Raises:
        UserError: an impossible value.
    """
    if (anchors := config.get("anchors")) is None:
        return None
    for key in ("omega", "noise", "share"):
        _check_number(f"anchors.{key}", anchors[key])
    _check_whole("anchors.per_filter", anchors["per_filter"], 1)
    try:
        return AnchorSettings(**anchors, learn_omega=config["prior"]["name"] == "omega")
    except ValueError as error:
        raise UserError(str(error)) from error


def _check_whole(key: str, value: Any, least: int, otherwise: str = "") -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UserError(f"{key} must be a whole number, at least {least}{otherwise}; got {value!r}")


def _check_number(key: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"{key} must be a number; got {value!r}")


def weight_settings(config: Mapping[str, Any]) -> WeightSettings:
    """How the weights are trained.

    Raises:
        UserError: an impossible value.
    """
    optimiser = config["optimiser"]
    try:
        return WeightSettings(
            epochs=config["epochs"],
            batch_size=config["batch_size"],
            optimiser=optimiser["name"],
            **{key: optimiser[key] for key in ("lr", "min_lr", "momentum", "relative")},
        )
    except ValueError as error:
        raise UserError(str(error)) from error


def laplace_settings(config: Mapping[str, Any]) -> LaplaceSettings | None:
    """How the precisions are learned; None for MAP.

    Raises:
        UserError: an impossible value.
    """
    objective = config["objective"]
    if objective["name"] == "map":
        return None
    given = {f.name: objective[f.name] for f in fields(LaplaceSettings)}
    try:
        return LaplaceSettings(**given | {"passes": None if given["passes"] == EXACT else given["passes"]})
    except ValueError as error:
        raise UserError(str(error)) from error


def device_of(config: Mapping[str, Any]) -> torch.device:
    """The device of `device=`; `auto` is CUDA where there is one.

    Raises:
        UserError: a device that is not there.
    """
    name = config["device"]
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:
        found = torch.cuda.device_count()
        cuda = f" and cuda:0 to cuda:{found - 1}" if found else "; no CUDA device was found"
        raise UserError(f"device={name} is not usable here: possible are auto, cpu{cuda}") from error
    return device
