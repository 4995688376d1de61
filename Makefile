# make train | make test: on a fresh machine each first makes the environment, .venv, from requirements.lock.
# Another interpreter: make test PYTHON=python3.12 (replaces an environment that was made with another one; VENV=.venv-3.12 keeps both).
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# One stamp per interpreter name: the environment is made once, and installed into again when what it is made from changes.
READY := $(VENV)/.ready-$(notdir $(PYTHON))

# Memory in large pages: a step on a CPU is about a sixth faster (docs/performance.md); only glibc looks at this.
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1

.PHONY: train test lint format docs env lock clean

train: $(READY)
	$(BIN)/python -m sapt_jax.train

# A process per core: most of a test is compiling, which keeps one busy. Files stay whole, as their tests share runs.
test: lint
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff format .

# The pages of docs/ as a site in build/site. The variable silences a notice of the theme about its successor.
docs: $(READY)
	$(BIN)/python -m pip install -qq --disable-pip-version-check -c requirements.lock -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

env: $(READY)

$(READY): requirements.lock requirements.txt pyproject.toml
	@echo "installing requirements.lock into $(VENV): minutes the first time"
	@[ -x $(BIN)/$(notdir $(PYTHON)) ] || $(PYTHON) -m venv --clear $(VENV)
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -r requirements.lock
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps -e .
	@touch $@

# The newest versions that fit, for every supported Python at once; the command stands in the lock's header.
lock: $(READY)
	$(BIN)/python -m pip install -qq --disable-pip-version-check uv
	$(BIN)/uv pip compile --upgrade --universal --python-version 3.11 --no-emit-index-url --extra test pyproject.toml -o requirements.lock

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .mypy_cache
