"""Which wheels a machine that has PyTorch and no network still needs: a line each, as pip takes them.

Run it there, with nothing but Python; on a machine with a network download what it prints, and install that there:

    python scripts/wheels.py > wheels.txt
    pip download --no-deps --dest wheels --requirement wheels.txt
    pip install --no-index --no-deps --find-links wheels --requirement wheels.txt

PyTorch and what it brings stay as they are: lines that begin with # name where that is not the pinned version.
torchvision has to be the one for the PyTorch that is there. What no run on a GPU needs is not listed: mypy, ruff,
launchers, Weights & Biases.
"""

import argparse
import re
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parents[1]
UNUSED = {"mypy", "ruff", "wandb", "wandb-workspaces", "hydra-joblib-launcher", "submitit"}
Packages = Mapping[str, tuple[str, set[str]]]
_LINE = re.compile(r"^(?P<name>[\w.-]+)==(?P<version>\S+)(?:\s+#\s+via (?P<parents>.*))?$")


def pinned(text: str) -> Packages:
    """Of every package in requirements.txt its version, and which packages ask for it."""
    found = filter(None, map(_LINE.match, text.splitlines()))
    return {line["name"]: (line["version"], set(re.split(r",\s*", line["parents"] or ""))) for line in found}


def asked_for(packages: Packages, by: str, without: Collection[str] = ()) -> set[str]:
    """The packages that `by` asks for, and those that these ask for; none of `without`, nor what these alone do."""
    found = {by}
    while more := {name for name, (_, parents) in packages.items() if parents & found} - found - set(without):
        found |= more
    return found - {by}


def lines(packages: Packages, here: Mapping[str, str]) -> Iterator[str]:
    """A line for each package to install, and a comment for one of PyTorch's that is there in another version."""
    torchs = asked_for(packages, "torch", ("torchvision", "ellarepro"))
    for name in sorted(asked_for(packages, "ellarepro", {"torch", *UNUSED})):
        version, installed = packages[name][0], here.get(_plain(name))
        if name in torchs and installed not in (None, version):
            yield f"# {name}: {installed} is here, {version} is pinned"
        elif installed != version:
            yield f"{name}=={version}"


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the lines; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.wheels", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.parse_args(arguments)
    here = {_plain(found.name): found.version for found in metadata.distributions()}
    print("\n".join(lines(pinned((ROOT / "requirements.txt").read_text(encoding="utf-8")), here)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
