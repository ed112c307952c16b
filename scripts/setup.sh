#!/usr/bin/env bash
# Make .venv/ afresh from requirements.txt. Usage: scripts/setup.sh [PYTHON]
set -euo pipefail
cd "$(dirname "$0")/.."
python=${1:-python3}

if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
  echo "ellarepro needs Python 3.11 or newer; '$python' is $("$python" --version 2>&1). Name another: make PYTHON=python3.12" >&2
  exit 2
fi
echo "Setting up .venv/ (PyTorch with CUDA and the rest: about 6 GB, one to five minutes)..."
rm -rf .venv
"$python" -m venv .venv
.venv/bin/pip install -qq --disable-pip-version-check -r requirements.txt
touch .venv/ready
echo "Set up: $(.venv/bin/python --version), torch $(.venv/bin/python -c 'from importlib.metadata import version; print(version("torch"))')."
