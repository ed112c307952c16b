"""The options of the ascent study: what they change is what they say, and without them a run is a run."""

import json
import re
from dataclasses import replace

import pytest
import torch
from helpers import assert_close, relative_error
from result_factory import make_config, make_result
from test_training import LAPLACE, same, trainer

from ellarepro.curvature.exact import ggn_rows
from ellarepro.curvature.factors import MomentSum
from ellarepro.curvature.structures import Block, Factor
from scripts import ascent_study
from scripts.ascent_variants import Ascent, Options, _shrunk


def positive(generator: torch.Generator, groups: int, size: int) -> torch.Tensor:
    root = torch.randn(groups, size, size, generator=generator, dtype=torch.float64)
    return root @ root.mT


@pytest.mark.parametrize(("axis", "shape"), [(None, (3, 4)), (0, (2, 3, 4)), (1, (3, 2, 4))])
def test_a_profile_step_is_the_maximum_of_the_quadratic_model(axis, shape):
    """Against the dense matrix, group by group, for groups in each place."""
    generator = torch.Generator().manual_seed(0)
    groups = 1 if axis is None else 2
    block = Block([Factor(MomentSum(positive(generator, groups, size))) for size in (3, 4)], axis)
    weights = torch.randn(shape, generator=generator, dtype=torch.float64)
    got = _shrunk(weights, block, 0.5, 20.0)
    slices = [...] if axis is None else [(slice(None),) * axis + (g,) for g in range(2)]
    for group, where in enumerate(slices):
        dense = torch.kron(block.factors[0][group], block.factors[1][group])
        flat = weights[where].reshape(-1)
        identity = torch.eye(len(flat), dtype=torch.float64)
        wanted = torch.linalg.solve(dense + 20.0 * identity, (dense + 0.5 * identity) @ flat)
        assert_close(got[where].reshape(-1), wanted, 1e-10)
    assert_close(_shrunk(weights, block, 0.5, 0.5), weights)
    assert relative_error(got, weights) > 0.1, "the control: another precision moves them"


def test_without_options_the_study_runs_as_any_run():
    plain = trainer()
    study, other = (Ascent.of(trainer(), o) for o in (Options(), Options(relaxed_precision=50.0)))
    for run in (plain, study, other):
        run.run()
    assert same(plain, study)
    assert not same(plain, other), "the control"


def test_fresh_subsets_of_all_data_without_a_past_are_the_fit_on_all_data():
    plain = trainer()
    study = Ascent.of(trainer(), Options(fresh=24))
    wanted, got = plain.fit_evidence(), study.fit_evidence()
    eta = plain.prior.log_precision.detach()
    assert_close(got.evidence(eta).log_det, wanted.evidence(eta).log_det, 1e-5)
    part = Ascent.of(trainer(), Options(fresh=6)).fit_evidence()
    assert relative_error(part.evidence(eta).log_det, wanted.evidence(eta).log_det) > 1e-4, "the control"


@pytest.mark.parametrize("options", [Options(fresh=6), Options(average=0.9)])
def test_a_run_takes_its_fits_as_the_options_say(options):
    plain, study = trainer(), Ascent.of(trainer(), options)
    for run in (plain, study):
        run.run()
    assert not same(plain, study) and not torch.equal(plain.prior.log_precision, study.prior.log_precision)
    assert study.history["fit_epoch"] == plain.history["fit_epoch"]


def test_a_run_takes_profile_steps_after_the_fits_from_the_epoch_it_is_told(monkeypatch):
    run, taken = Ascent.of(trainer(), Options(profile_from=2)), []
    monkeypatch.setattr(run, "_profile", lambda before, after: taken.append((run.epoch, set(run.averaged))))
    run.run()
    assert run.history["fit_epoch"] == [1, 3, 5]
    assert taken == [(2, set(run.prior.names)), (4, set(run.prior.names))], "epochs that are done"


def test_a_likelihood_to_the_power_of_a_half_is_a_prior_twice_as_strong():
    half = Ascent.of(trainer(laplace=None, epochs=2), Options(temperature=0.5, temperature_epochs=10**9))
    strong, plain = (trainer(laplace=None, epochs=2) for _ in range(2))
    with torch.no_grad():
        strong.prior.log_precision += torch.tensor(2.0).log()
    for run in (half, strong, plain):
        run.run()
    mine, wanted, other = (
        torch.cat([p.detach().flatten() for p in r.model.parameters()]) for r in (half, strong, plain)
    )
    assert relative_error(mine, wanted) < 1e-3 < 1e-2 < relative_error(mine, other)
    assert half.prior.log_precision.abs().max() < 1e-12, "given back after each epoch"


def test_matched_precisions_are_one_over_the_mean_square_and_one_for_the_factors_of_a_path():
    run = Ascent.of(trainer(), Options(matched=0.5))
    precision, weights = run.prior.precisions(), dict(run.model.named_parameters())
    square = {name: p.detach().square().mean().item() for name, p in weights.items()}
    conv, first, second = (f"blocks.0.paths.{name}.weight" for name in ("conv", "f_fc.theta1", "f_fc.theta2"))
    assert precision[conv] == pytest.approx(0.5 / square[conv])
    assert precision[first] == pytest.approx(precision[second])
    assert precision[first] == pytest.approx(0.5 / (square[first] * square[second]) ** 0.5)


def test_a_profile_step_that_raises_the_objective_is_taken_back(monkeypatch):
    run = Ascent.of(trainer(), Options(profile_from=1))
    run.fit_evidence()
    before = [p.detach().clone() for p in run.prior.parameters]
    deltas = run.prior.log_precision.detach().exp()
    losses = iter([0.0, 1e9])
    with monkeypatch.context() as patch:
        patch.setattr("scripts.ascent_variants.total_loss", lambda *args: next(losses))
        run._profile(deltas, deltas * 100)
    assert all(torch.equal(p, kept) for p, kept in zip(run.prior.parameters, before, strict=True))
    run._profile(deltas, deltas * 100)
    assert not all(torch.equal(p, kept) for p, kept in zip(run.prior.parameters, before, strict=True)), "the control"


def test_the_table_has_a_line_a_variant_that_was_run(tmp_path, monkeypatch):
    monkeypatch.setattr(ascent_study, "FOLDER", tmp_path)
    run = trainer(laplace=replace(LAPLACE, fit=replace(LAPLACE.fit, passes=1)))
    run.run()
    for seed, task, accuracy in ((1, "digit", 0.5), (2, "digit", 0.7), (1, "position", 0.25)):
        record = {"variant": "neutral, tied", "task": task, "seed": seed, "cpu_seconds": 9.0}
        record |= ascent_study.measured(run) | {"test_accuracy": accuracy}
        ascent_study._path("neutral, tied", task, seed).write_text(json.dumps(record))
    head, _, line = ascent_study._table(ascent_study._records())
    assert [cell.strip() for cell in line.split("|")[1:4]] == ["neutral, tied", "2", "60.0 ± 14.1"]
    assert "25.0" in line and "±" not in line.split("25.0")[1].split("|")[1]
    assert len(head.split("|")) == len(line.split("|"))


def test_weights_that_were_kept_are_the_run_again(tmp_path, monkeypatch):
    run = trainer()
    run.run()
    ascent_study._save(run, tmp_path / "run.pt")
    monkeypatch.setattr(ascent_study, "prepare", lambda config: (trainer(), None))
    again = ascent_study._loaded({"config": {}}, tmp_path / "run.pt")
    assert same(run, again) and torch.equal(run.prior.log_precision, again.prior.log_precision)


def test_the_exact_log_determinant_is_that_of_the_rows_and_not_that_of_blocks():
    run = trainer()
    run.run()
    found, train = ascent_study.kernels(run, few=2, sampled=6), run.task.train
    deltas = run.prior.log_precision.detach().exp().double()
    rows = ggn_rows(run.model, train.inputs[:2]).double()
    pairs = zip(deltas, run.prior.parameters, strict=True)
    scaled = rows * torch.cat([delta.expand(p.numel()) for delta, p in pairs]).rsqrt()
    wanted = torch.linalg.slogdet(torch.eye(len(rows)) + scaled @ scaled.mT).logabsdet.item()
    assert found["all"]["log_det"]["exact"] == pytest.approx(wanted, rel=1e-4)
    assert found["all"]["log_det"]["kron"] != pytest.approx(wanted, rel=0.05), "the control"
    assert found["sampled"]["images"] == 6 and found["neg_log_marglik_per_datum"]["exact"] > 0


def test_runs_that_differ_in_their_seed_alone_share_a_row():
    tied = {"name": "laplace", "tied": True, "fit_size": None, "passes": 1, "frequency": 2, "burn_in": 4}
    untied = tied | {"tied": False, "fit_size": 1000, "passes": "exact", "frequency": 1}
    runs = [
        make_result(make_config(seed=seed, objective=objective, relaxation=0.1), test_accuracy=accuracy)
        for seed, accuracy, objective in ((1, 0.4, tied), (2, 0.5, tied), (1, 0.3, untied))
    ]
    _, _, first, second = ascent_study._runs_table(runs)
    assert "tied, all data, 1 sampled pass, every 2 epochs from 4," in first and "| 2 |" in re.sub(" +", " ", first)
    assert "45.00 ± 7.07" in first
    assert "untied, 1,000 images, exact passes, every epoch from 4," in second
    assert "30.00 " in second and "±" not in second
