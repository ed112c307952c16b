"""What a machine that has PyTorch alone still needs."""

import subprocess
import sys
from pathlib import Path

from scripts.wheels import ROOT, asked_for, lines, pinned

REQUIREMENTS = """
# Every package
ellalib==1.0   # via ellarepro
mypy==2.0      # via ellarepro
numpy==2.4     # via ellalib, torch
sympy==1.14    # via torch
torch==2.15    # via ellalib, ellarepro
tree==3.0      # via ellalib
"""


def test_what_is_there_is_left_out_and_what_pytorch_brings_stays():
    packages = pinned(REQUIREMENTS)
    assert asked_for(packages, "torch") == {"numpy", "sympy"}
    assert list(lines(packages, {})) == ["ellalib==1.0", "numpy==2.4", "tree==3.0"]
    here = {"tree": "2.0", "numpy": "2.3", "ellalib": "1.0"}
    assert list(lines(packages, here)) == ["# numpy: 2.3 is here, 2.4 is pinned", "tree==3.0"]


def test_of_the_pinned_packages_all_that_is_imported_is_listed():
    packages = pinned((ROOT / "requirements.txt").read_text())
    listed = {line.partition("==")[0] for line in lines(packages, {})}
    assert {"hydra-core", "laplace-torch", "asdfghjkl", "torchvision", "mlxtend", "pytest", "numpy"} <= listed
    assert not listed & {"torch", "triton", "nvidia-cublas", "wandb", "mypy"}


def test_it_needs_nothing_but_python():
    call = [sys.executable, "-I", "-S", str(Path(ROOT, "scripts", "wheels.py"))]
    assert "hydra-core==" in subprocess.run(call, check=True, capture_output=True, text=True).stdout
