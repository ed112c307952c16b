"""From configuration to a trainer that can start: data, network and prior, refused here if they surely do not fit."""

import random
from typing import Any

import numpy as np
import torch

from ellarepro.config.resolve import check_combination, check_no_tolerance
from ellarepro.config.schema import Config
from ellarepro.curvature.likelihood import Likelihood, Regression
from ellarepro.curvature.likelihoods import LIKELIHOODS
from ellarepro.curvature.memory import free_bytes
from ellarepro.data import Task, load_task, with_held_out
from ellarepro.data.augment import flip_and_crop
from ellarepro.data.training_batches import ShuffledBatches
from ellarepro.errors import UserError
from ellarepro.evidence.prior import LayerwisePrior
from ellarepro.network import Network, build_network
from ellarepro.objectives import objective_named
from ellarepro.settings.parts import WeightSettings
from ellarepro.training.loop import Trainer
from ellarepro.training.optimisers import CosineRates, optimiser_of, states_of


def prepare(settings: Config) -> tuple[Trainer, Task]:
    """What `run` trains and on what: loads the data and builds the network; writes nothing.

    Raises:
        UserError: the settings or the data are unusable.
    """
    check_combination(settings)
    device = _device_of(settings)
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    task = load_data(settings).to(device)
    if task.likelihood != "classification":
        check_no_tolerance(settings, f"a {task.likelihood}")
    _seed(settings.seed)
    choose_arithmetic(settings.tf32)
    model = _network(settings, task).to(device).eval()
    fixed = model.anchor_values() if getattr(settings.prior, "anchors", None) == "fixed" else ()
    tied = model.factor_groups() if getattr(settings.objective, "tied", False) else ()
    prior = LayerwisePrior(model, settings.prior.precision, fixed, tied)
    generator = torch.Generator(device).manual_seed(settings.seed)
    weights = WeightSettings(settings.epochs, settings.batch_size, settings.optimiser, settings.prior.plateau)
    objective = (settings.objective.name, settings.objective)
    return trainer_of(prior, task, weights, objective, generator, settings.replay), task


def trainer_of(
    prior: LayerwisePrior,
    task: Task,
    weights: WeightSettings,
    objective: tuple[str, Any],
    generator: torch.Generator,
    replay: bool = False,
) -> Trainer:
    """The loop of a run.

    Args:
        prior: of the network.
        objective: its name and its settings.
        generator: of the batches and of what the objective draws, on the device of the data.
    """
    name, settings = objective
    options = {"settings": settings, "generator": generator, "plateau": weights.plateau}
    ascended = objective_named(name)(prior, likelihood_of(task), task.train, **options)
    batches = ShuffledBatches(task.train, weights.batch_size, flip_and_crop if task.augment else None)
    optimiser = optimiser_of(prior.model, weights.optimiser, ascended)
    rates = CosineRates(optimiser, weights)
    return Trainer(ascended, batches, optimiser, rates, weights.epochs, generator, replay)


def likelihood_of(task: Task) -> Likelihood:
    """What the targets of `task` are; the values of a regression are divided by their spread."""
    if task.likelihood == "regression":
        return Regression(unit=torch.tensor(task.target_std))
    return LIKELIHOODS[task.likelihood]()


def load_data(settings: Config) -> Task:
    """The data that a run trains and tests on.

    Raises:
        UserError: they are not there, or unusable.
    """
    dataset = settings.dataset
    task = load_task(
        dataset.name,
        source=dataset.source,
        download=dataset.download,
        augment=dataset.augment,
        strength=dataset.strength,
        root=dataset.location,
        train_size=settings.train_size,
        test_size=settings.test_size,
    )
    return task if dataset.held_out is None else with_held_out(task, dataset.held_out)


def _network(settings: Config, task: Task) -> Network:
    def build() -> Network:
        return build_network(
            settings.layer.name,
            in_channels=task.in_channels,
            num_classes=task.outputs,
            alpha=settings.alpha,
            image_size=task.image_size,
            anchors=settings.anchors,
            group=settings.group or "c1",
            relaxation=settings.relaxation,
            smooth=settings.smooth,
        )

    try:
        with torch.device("meta"):
            planned = build()
        check_training_memory(planned, settings, task)
        return build()
    except ValueError as error:
        raise UserError(str(error)) from error


def check_training_memory(planned: Network, settings: Config, task: Task) -> None:
    """Refuse a network that surely does not fit, before any of it is made.

    Args:
        planned: the network on the meta device, where tensors have no storage.

    Raises:
        UserError: its weights, or the outputs of its layers for one batch, exceed the memory that is free.
    """
    states = states_of(settings.optimiser)
    count = sum(p.numel() for p in planned.parameters())
    device = task.train.inputs.device
    free = free_bytes(device)
    if (needed := 4 * count * (2 + states)) > free:
        raise UserError(
            f"alpha={settings.alpha}: {count:,} parameters with their gradients and the optimiser's state need "
            f"{needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free on {device}; lower alpha"
        )
    outputs: list[int] = []
    leaves = [module for module in planned.modules() if not list(module.children())]
    hooks = [leaf.register_forward_hook(lambda *call: outputs.append(call[2].numel())) for leaf in leaves]
    planned(torch.empty(1, *task.train.inputs.shape[1:], device="meta"))
    for hook in hooks:
        hook.remove()
    batch = min(settings.batch_size, len(task.train))
    if (needed := 4 * batch * sum(outputs)) > free:
        raise UserError(
            f"batch_size={settings.batch_size}: what the layers put out for {batch:,} images needs "
            f"{needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free on {device}; lower batch_size or alpha"
        )


def choose_arithmetic(tf32: bool) -> None:
    """From now on a CUDA device takes float32 products and convolutions as said, and by the same kernels each time."""
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True


def _seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def _device_of(settings: Config) -> torch.device:
    """The device of `device=`; `auto` is CUDA where there is one.

    Raises:
        UserError: a device that is not there, or a key that means nothing there.
    """
    device = _device_named(settings.device)
    for key in ("replay", "tf32"):
        if getattr(settings, key) and device.type != "cuda":
            raise UserError(f"{key}=true needs a CUDA device; this run is on {device}")
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
