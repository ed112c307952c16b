"""A third objective is one class and one line of the registry; a regression by dataset=npz; the library's loop."""

import math
import sys
from dataclasses import dataclass, replace
from types import ModuleType

import numpy as np
import pytest
import torch
from helpers import small_data, weight_settings
from torch import nn

from ellarepro import LaplaceSettings, LayerwiseLaplace, Regression, load_run, objectives
from ellarepro.config.compose import compose
from ellarepro.config.explain import kind_of
from ellarepro.config.schema import settings_of
from ellarepro.curvature.likelihood import Classification
from ellarepro.data import Samples, Task, load_task
from ellarepro.data.__main__ import main as show_data
from ellarepro.errors import UserError
from ellarepro.evidence.evaluation import evaluate
from ellarepro.evidence.prior import LayerwisePrior
from ellarepro.inspection import markdown
from ellarepro.network import build_network
from ellarepro.objectives.laplace import Laplace
from ellarepro.objectives.objective import Objective
from ellarepro.report.charts import run_charts
from ellarepro.results import read_result
from ellarepro.run import run
from ellarepro.runs.preparing import trainer_of
from ellarepro.settings.ranges import Settings, setting

SCHEDULE = LaplaceSettings(burn_in=1, frequency=1, steps=5)


class Matched(Objective):
    """After each epoch every precision is P / |theta|^2, at which the prior explains the weights' size."""

    def after_epoch(self, epoch, epochs, loss, pause):
        sizes = torch.tensor([p.numel() for p in self.prior.parameters], dtype=torch.float64)
        with torch.no_grad():
            self.prior.log_precision.copy_((sizes / self.prior.squared_norms().clamp_min(1e-12)).log())
        return {"neg_log_marglik_per_datum": self.penalty(), "prior_precision": self.prior.precisions()}


def test_fits_on_the_way_see_hyper_fit_size_data_and_the_last_one_all_of_them():
    pixels, labels = small_data(24)
    data = Samples(pixels.float(), labels)
    prior = LayerwisePrior(build_network("conv", in_channels=1, num_classes=3, alpha=1, image_size=8))
    settings = replace(SCHEDULE, hyper_fit_size=10)
    laplace = Laplace(prior, Classification(), data, settings=settings, generator=torch.Generator())
    seen: list[int] = []
    hook = prior.model.register_forward_hook(lambda model, inputs, outputs: seen.append(len(outputs)))
    laplace.after_epoch(1, 2, 1.0, lambda: None)
    assert sum(seen) == 10
    laplace.report(data, torch.Generator(), lambda: None)
    assert sum(seen) == 34
    hook.remove()


def test_a_third_objective_is_one_file_and_one_line_of_the_registry(monkeypatch):
    monkeypatch.setitem(sys.modules, "ellarepro.objectives.matched", ModuleType("matched"))
    monkeypatch.setattr(sys.modules["ellarepro.objectives.matched"], "Matched", Matched, raising=False)
    monkeypatch.setitem(objectives.OBJECTIVES, "matched", "matched.Matched")
    pixels, labels = small_data(24)
    data = Samples(pixels.float(), labels)
    task = Task("tiny", data, data, 3, 1, 8, "none", (0.0,), (1.0,), False, ("a", "b", "c"))
    torch.manual_seed(0)
    prior = LayerwisePrior(build_network("conv", in_channels=1, num_classes=3, alpha=1, image_size=8))
    weights = weight_settings(epochs=2, batch_size=8, lr=0.1)
    trainer = trainer_of(prior, task, weights, ("matched", None), torch.Generator().manual_seed(0))
    trainer.run()
    wanted = {n: p.numel() / p.double().square().sum().item() for n, p in trainer.model.named_parameters()}
    assert prior.precisions() == pytest.approx(wanted)
    assert trainer.history["fit_epoch"] == [1, 2] and trainer.objective.report(data, None, lambda: None)


def bright_rows(folder, spread: float = 75.0, samples: int = 160):
    """Images whose brightness says the target, in a unit of its own, with noise of a tenth of the spread."""
    draw = np.random.default_rng(0)
    content = {}
    for split, count in (("train", samples), ("test", 60)):
        brightness = draw.uniform(0.1, 0.9, count)
        noise = draw.normal(0, 0.1 * spread * np.std(brightness), count)
        content[f"{split}_images"] = (255 * brightness[:, None, None] * np.ones((1, 8, 8))).astype(np.uint8)
        content[f"{split}_targets"] = 500 + spread * brightness + noise
    np.savez(folder / "values.npz", **content)
    return folder / "values.npz"


@pytest.mark.parametrize("objective", ["map", "laplace"])
def test_a_regression_from_command_line_to_report(tmp_path, objective):
    file = bright_rows(tmp_path)
    keys = ["dataset=npz", f"dataset.path={file}", "budget=smoke", "layer=conv", f"objective={objective}"]
    keys += ["epochs=15", "train_size=null", "test_size=null", "optimiser.lr=0.01", "threads=1", "device=cpu"]
    outcome = run(compose([*keys, "progress=false", f"output_dir={tmp_path}/runs"]), say=lambda line: None)
    result = read_result(outcome.folder / "result.json")
    with np.load(file) as arrays:
        spread = arrays["test_targets"].std()
    assert result.test_accuracy is None and 0 < result.test_rmse < 0.5 * spread, "the control: guessing has the spread"
    gaussian = math.log(math.sqrt(2 * math.pi) * result.test_rmse) + 0.5
    assert result.test_nll == pytest.approx(gaussian, abs=1.0), "in the unit of the targets, as the RMSE is"
    loaded = load_run(outcome.folder)
    scores = evaluate(loaded.network, loaded.task.test, likelihood=loaded.likelihood)
    assert (scores.nll, scores.rmse) == (result.test_nll, result.test_rmse), "its weights, and its noise, are kept"
    assert len(result.history["train_rmse"]) == 15 and "accuracy_change" not in result.path_use["all"]["conv"]
    assert "test RMSE" in markdown(result)
    assert "RMSE" in [chart.title for chart in run_charts(result)]
    if objective == "laplace":
        assert result.neg_log_marglik_per_datum > result.history["loss"][-1]
        assert len(result.history["hyperparameters"]["noise_precision"]) == len(result.history["fit_epoch"])


def test_a_regression_takes_no_class_passes_that_a_tolerance_could_leave_out(tmp_path):
    keys = ["dataset=npz", f"dataset.path={bright_rows(tmp_path)}", "budget=smoke", "objective.tolerance=0"]
    keys += ["train_size=null", "test_size=null", "device=cpu", f"output_dir={tmp_path}/runs"]
    with pytest.raises(UserError, match=r"objective.tolerance=0 has no meaning beside a regression"):
        run(compose(keys), say=lambda line: None)
    assert not (tmp_path / "runs").exists()


@dataclass(frozen=True)
class MatchedSettings(Settings):
    share: float = setting("of the step towards it", 1.0, above=0, most=1)
    name: str = "matched"


def test_the_keys_of_a_third_objective_are_those_of_its_class(monkeypatch):
    module = ModuleType("matched")
    module.Matched = type("Matched", (Matched,), {"Settings": MatchedSettings})
    monkeypatch.setitem(sys.modules, "ellarepro.objectives.matched", module)
    monkeypatch.setitem(objectives.OBJECTIVES, "matched", "matched.Matched")
    config = compose(["objective=map"]).record | {"objective": {"name": "matched", "share": 0.5}}
    assert settings_of(config).objective == MatchedSettings(0.5)
    assert kind_of("objective.share") == "a number, above 0 and at most 1"
    with pytest.raises(UserError, match=r"objective.share must be above 0 and at most 1; got 2"):
        settings_of(config | {"objective": {"name": "matched", "share": 2}})


def test_targets_keep_their_unit(tmp_path, capsys):
    file = bright_rows(tmp_path)
    task = load_task("npz", root=file)
    assert task.likelihood == "regression" and task.outputs == 1
    assert task.train.targets.mean().abs() < 1e-6 and task.train.targets.std(correction=0) == pytest.approx(1)
    with np.load(file) as arrays:
        found = sorted(float(task.title(target)) for target in task.train.targets)
        assert found == pytest.approx(sorted(arrays["train_targets"]), rel=5e-3)
    assert show_data(["npz", "--root", str(file), "--out", str(tmp_path / "sheet.png"), "--rows", "1"]) == 0
    assert "1 values" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"test_targets": None}, "has no test_targets"),
        ({"train_targets": np.zeros(7)}, r"train_targets must be numbers of shape \(160,\)"),
        ({"train_targets": np.full(160, np.nan)}, "train_targets must be finite"),
        ({"train_targets": np.ones(160)}, "must vary"),
        ({"train_targets": np.random.default_rng(0).normal(size=(160, 2))}, "as many values a sample; got 2, 1"),
    ],
)
def test_targets_of_another_form_are_refused(tmp_path, change, said):
    with np.load(bright_rows(tmp_path)) as arrays:
        content = {name: value for name, value in (dict(arrays) | change).items() if value is not None}
    np.savez(tmp_path / "other.npz", **content)
    with pytest.raises(UserError, match=said):
        load_task("npz", root=tmp_path / "other.npz")


def test_scores_of_a_regression_are_those_of_its_gaussian():
    outputs, targets = torch.randn(50, 2, generator=torch.Generator().manual_seed(1)), torch.zeros(50, 2)
    unit = torch.tensor([3.0, 0.5])
    scores = Regression(4.0, unit=unit).scores(outputs, targets)
    distribution = torch.distributions.Normal(outputs.double() * unit, unit.double() / 2)
    assert scores.nll == pytest.approx(-distribution.log_prob(targets.double()).sum(1).mean().item())
    assert scores.rmse == pytest.approx((outputs * unit).square().mean().sqrt().item(), rel=1e-6)
    noisy = Regression()
    noisy.fit_noise(loss=0.32, width=1)
    assert noisy.noise_std == pytest.approx(0.8), "half the squared error is 0.32: a standard deviation of 0.8"


def line(seed: int = 0) -> tuple[nn.Module, tuple[torch.Tensor, torch.Tensor]]:
    torch.manual_seed(seed)
    inputs = torch.randn(40, 3)
    return nn.Linear(3, 1), (inputs, inputs.sum(1, keepdim=True) + 0.1 * torch.randn(40, 1))


def test_the_library_takes_schedulers(capsys):
    model, data = line()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimiser, 1, gamma=0.5)
    laplace = LayerwiseLaplace(model, "regression")
    laplace.train(data, epochs=4, optimiser=optimiser, scheduler=scheduler, schedule=SCHEDULE, progress=True)
    assert optimiser.param_groups[0]["lr"] == pytest.approx(0.1 * 0.5**3), "one step of it between two epochs"
    told = capsys.readouterr().out
    assert "epoch 4/4" in told and "rmse" in told


def test_the_library_continues_from_a_checkpoint(tmp_path, monkeypatch):
    """Stopped in its third epoch, the same call ends with the bits of an uninterrupted one."""

    def trained(folder=None, stop_after: int | None = None) -> LayerwiseLaplace:
        model, data = line()
        laplace, calls = LayerwiseLaplace(model, "regression"), []

        def count(module, inputs) -> None:
            calls.append(inputs)
            if len(calls) == stop_after:
                raise KeyboardInterrupt

        model.register_forward_pre_hook(count)
        return laplace.train(data, epochs=5, batch_size=10, schedule=SCHEDULE, checkpoint=folder)

    wanted = trained()
    monkeypatch.setattr("ellarepro.resume.checkpoint.Checkpoints.due", True)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, stop_after=25)
    assert (tmp_path / "checkpoint.pt").exists()
    continued = trained(tmp_path)
    for name, value in wanted.model.state_dict().items():
        assert torch.equal(value, continued.model.state_dict()[name])
    assert continued.precisions() == wanted.precisions()
    assert not list(tmp_path.iterdir()), "nothing is left once it is done"
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, stop_after=25)
    model, data = line()
    with pytest.raises(UserError, match="another training"):
        LayerwiseLaplace(model, "regression").train(data, epochs=6, schedule=SCHEDULE, checkpoint=tmp_path)
