"""What a configuration alone tells of choices that are possible by themselves and not together."""

from ellarepro.config.schema import Config, Dataset
from ellarepro.data.tasks import OWN
from ellarepro.errors import UserError, nearest
from ellarepro.layers.groups import GROUPS
from ellarepro.network import LAYERS, has_relaxed_path, options_of, priors_of
from ellarepro.settings.parts import DEFAULT_FIT
from ellarepro.training.optimisers import states_of


def check_combination(settings: Config) -> None:
    """Refuse choices that are possible by themselves and not together.

    Raises:
        UserError: names the keys, the reason, and what goes together.
    """
    layer, prior, options = settings.layer.name, settings.prior.name, options_of(settings.layer.name)
    if prior not in priors_of(layer):
        _refuse_prior(layer, prior)
    if settings.group is not None and "group" not in options:
        others = ", ".join(name for name in LAYERS if "group" in options_of(name))
        raise UserError(
            f"group={settings.group} is for layers with a gconv path, which share weights over a group; "
            f"layer={layer} has none: take layer={others}, or leave group out"
        )
    if settings.group is not None and settings.group not in GROUPS:
        raise UserError(
            f"group must be one of {', '.join(GROUPS)}; got {settings.group!r}{nearest(settings.group, GROUPS)}"
        )
    if settings.anchors is not None and "anchors" not in options:
        raise UserError(f"anchors are for sparse layers; layer={layer} has none")
    _check_path(settings.dataset)
    _check_used(settings)
    states_of(settings.optimiser)


def _check_used(settings: Config) -> None:
    """Refuse what would change the run's id and nothing else."""
    if settings.relaxation != settings.dataset.relaxation and not has_relaxed_path(settings.layer.name):
        others = ", ".join(name for name in LAYERS if has_relaxed_path(name))
        raise UserError(
            f"relaxation={settings.relaxation:g} has no meaning for layer={settings.layer.name}, none of whose paths "
            f"is relaxed beside an equivariant one; it is for layer={others}"
        )
    fit = getattr(settings.objective, "fit", None)
    if fit is not None and not fit.takes_class_passes:
        keys = ("passes",) if fit.sampled else ("structure", "engine")
        check_no_tolerance(settings, " ".join(f"objective.{key}={getattr(fit, key)}" for key in keys))


def check_no_tolerance(settings: Config, beside: str) -> None:
    """Refuse a tolerance of class passes where `beside` takes none.

    Raises:
        UserError: it is not the default.
    """
    fit = getattr(settings.objective, "fit", DEFAULT_FIT)
    if fit.tolerance != DEFAULT_FIT.tolerance:
        raise UserError(
            f"objective.tolerance={fit.tolerance:g} has no meaning beside {beside}: it is for exact class "
            f"passes, objective.passes=exact by the native engine; leave it out"
        )


def _check_path(dataset: Dataset) -> None:
    name, path = dataset.name, dataset.path
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
