# Every target sets up its own .venv (Python 3.11 or newer is all it takes) with the exact versions of constraints.txt.
# TORCH= chooses another torch build than the CPU one:  make demo TORCH="torch==2.13.0 --index-url https://..."

SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
ifeq ($(origin TORCH),undefined)
TORCH := torch==2.13.0
# Where the CPU build lies; without this index pip takes the CUDA one on Linux. One retry: it may be out of reach.
TORCH_FLAGS := --retries 1 --extra-index-url https://download.pytorch.org/whl/cpu
endif
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
READY := $(VENV)/ready-$(shell echo '$(TORCH)' | cksum | cut -d' ' -f1)
export OMP_NUM_THREADS ?= 1

.PHONY: help install docs wheel demo screenshots test test-slow test-all lint results bench constraints clean
help:
	@echo "make demo       every recipe on the embedded pocket models, then each model by each evaluation; ten to twelve minutes"
	@echo "make install    .venv with all that is needed; the other targets do it, too"
	@echo "make docs       the documentation as a site under build/site, every link checked"
	@echo "make wheel      the package to install elsewhere, under dist"
	@echo "make test       ruff, mypy and the quick tests, offline, under five minutes"
	@echo "make test-all   the slower tests as well"
	@echo "make results    remake every table under docs/results (in the background; goes on where it was stopped)"
	@echo "make bench      measure every speed against the other ways of doing it, about half an hour; goes on if stopped"
	@echo "make lint       ruff and mypy only"
	@echo "make screenshots    take the documentation's pictures anew, of the runs that make demo has made"

$(READY): constraints.txt pyproject.toml
	@test -n "$(PYTHON)" || { echo "error: Python 3.11 or newer is needed; set PYTHON=/path/to/python3" >&2; exit 2; }
	@echo "setting up $(VENV) (once)"
	$(PYTHON) -m venv $(VENV)
	grep -v '^torch==' constraints.txt > $(VENV)/constraints.txt
	$(PIP) $(TORCH) $(TORCH_FLAGS) -c $(VENV)/constraints.txt
	$(PIP) hatchling editables -c $(VENV)/constraints.txt
	$(PIP) --no-build-isolation -e '.[dev]' -c $(VENV)/constraints.txt
	@rm -f $(VENV)/ready-* && touch $@

install: $(READY)
	@echo "source $(VENV)/bin/activate, then: dialoom --help"

docs: $(READY)
	$(BIN)/python -m bench.site

wheel: $(READY)
	$(BIN)/python -m hatchling build -t wheel -d dist

demo: $(READY)
	$(BIN)/dialoom demo --out runs/demo

screenshots: $(READY) chromium  # of the demonstration's runs, with other debates beside the first ones, and an audit
	$(BIN)/dialoom pbt pairs --seed 2 --out runs/demo/pbt-seed-2
	$(BIN)/dialoom audit runs/demo/ideas --arm plain --html runs/demo/audit.html || [ $$? -eq 2 ]  # 2: it found errors
	$(BIN)/python -m bench.screenshots --demo runs/demo

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/mypy dialoom

test: lint
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n 2 -m 'not slow'

# The viewer is tested in a real browser. Where none is there and none can be had, those tests are skipped, aloud (-rs).
.PHONY: chromium
chromium: $(READY)
	@there() { $(BIN)/python -c 'import sys; from bench.browser import find_chromium; sys.exit(find_chromium() is None)'; }; \
	there && exit 0; echo "looking for a Chromium to test the viewer with"; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null; then \
	  (apt-get update -qq; timeout 300 apt-get install -qqy --no-install-recommends chromium) > /dev/null 2>&1; fi; \
	there || timeout 300 $(BIN)/playwright install chromium-headless-shell > /dev/null 2>&1; \
	there || echo "no Chromium could be had: the viewer's tests in a browser will be skipped"

test-slow: $(READY) chromium
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -rs -m slow --timeout 1800 || [ $$? -eq 5 ]  # 5: there are none

test-all: test test-slow

results: $(READY)
	@mkdir -p runs/results
	@nohup sh -c '$(BIN)/python -m bench.results && $(BIN)/python -m bench.cross' >> runs/results/log 2>&1 &
	@echo "in the background, about three hours on two cores: tail -f runs/results/log (stopped ones go on by the same command)"

bench: $(READY)  # installs TRL and vLLM beside .venv, under runs/bench; where they cannot be had, their rows are missing
	$(BIN)/python -m bench.speed

constraints: $(READY)  # after a change of dependencies: install them into .venv first, then freeze
	{ head -2 constraints.txt; $(BIN)/python -m pip freeze --all --exclude-editable | grep -v '^pip==' | sed 's/+cpu$$//'; } \
		> $(VENV)/frozen.txt && mv $(VENV)/frozen.txt constraints.txt && touch $(READY)

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache build dist
