# One command each: `make demo`, `make test`, `make check`. Every target sets up what it needs; a set-up that is up to
# date costs nothing.
SHELL := /bin/bash
.DEFAULT_GOAL := setup
.PHONY: setup demo train-demo test check format bench audit fuzz chaos constraints clean

VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.up-to-date
# uv from the machine, else in a small environment of its own: a system Python may refuse packages.
UV := $(shell command -v uv 2>/dev/null || echo .uv/bin/uv)

# A run starts many processes that import the same modules: what one has compiled the next need not, also where the
# environment says not to keep it. CPU seconds with nothing kept and with it, on a busy machine: Ray alone 6.7 and 2.3,
# with torch and the engine 14.5 and 5.6.
export PYTHONDONTWRITEBYTECODE :=

setup: $(STAMP)

.uv/bin/uv:
	python3 -m venv .uv
	.uv/bin/python -m pip install --quiet --disable-pip-version-check uv

$(STAMP): pyproject.toml constraints.txt $(filter .uv/bin/uv,$(UV))
	test -x $(PY) || $(UV) venv --quiet --python '>=3.11' $(VENV)
	$(UV) pip install --quiet --python $(PY) --constraints constraints.txt --editable '.[dev]'
	touch $@

demo: $(STAMP)
	$(PY) jobs/make_synthetic_cohort.py --out demo/cohort --num-slides 3 --width-mm 2 --height-mm 1.5 --seed 0
	$(PY) jobs/segment_cohort.py --slides demo/cohort/slides --out demo/cells
	$(PY) jobs/show_cells.py --cells demo/cells --slides demo/cohort/slides --slide-id synthetic_0000 \
		--side-um 200 --out demo/overlay.png

# The whole training chain on made-up tissue: 107 minutes of one thread on a busy machine; goes on where it was cut off.
train-demo: $(STAMP)
	$(PY) jobs/train_demo.py --out demo/train

test: $(STAMP)
	$(PY) -m pytest

check: $(STAMP)
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/pyright
	$(VENV)/bin/lint-imports

# Rivals that pin other libraries have environments of their own, with the versions the figures were taken with.
.bench/tiatoolbox/.up-to-date:
	$(UV) venv --quiet --clear --python 3.11 .bench/tiatoolbox
	$(UV) pip install --quiet --python .bench/tiatoolbox/bin/python tiatoolbox==2.1.3 torch==2.12.1 torchvision==0.27.1
	touch $@

.bench/ratiopath/.up-to-date:
	$(UV) venv --quiet --clear --python 3.11 .bench/ratiopath
	$(UV) pip install --quiet --python .bench/ratiopath/bin/python ratiopath==1.0.3 ray==2.60.0 openslide-bin==4.0.1.2
	touch $@

bench: $(STAMP) .bench/tiatoolbox/.up-to-date .bench/ratiopath/.up-to-date
	$(UV) pip install --quiet --python $(PY) --constraints constraints.txt --editable '.[dev,bench]'
	$(PY) -m benchmarks

# Known vulnerabilities of what constraints.txt pins.
audit: $(filter .uv/bin/uv,$(UV))
	python3 infra/audit.py $(UV)

# Thousands of damaged slides; goes on where it was stopped. FUZZ="--count 10000" runs more.
fuzz: $(STAMP)
	nice -n 19 $(PY) tests/fuzz_slides.py --count 2000 --log .fuzz/slides.jsonl --data ../shared/data $(FUZZ)

# Hundreds of faults between any two writes, then more on a Ray cluster of several nodes, which goes on where it was
# stopped; outputs as of a quiet run. CHAOS="--seed 5" and CHAOS_RAY="--faults 300" take others.
chaos: $(STAMP)
	nice -n 10 $(PY) tests/chaos.py --faults 200 $(CHAOS)
	nice -n 10 $(PY) tests/chaos_ray.py --faults 120 --log .chaos/ray.jsonl $(CHAOS_RAY)

format: $(STAMP)
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

constraints:
	$(UV) pip compile --quiet --upgrade --all-extras --python-version 3.11 pyproject.toml \
		--no-annotate --no-header --no-emit-index-url --output-file constraints.txt

clean:
	rm -rf $(VENV) .uv demo
	find . -name __pycache__ -not -path "./.venv/*" -prune -exec rm -rf {} +
