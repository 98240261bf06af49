# Works with make and Python 3.11 or newer; everything else is fetched into .venv.

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
DEVELOP := $(VENV)/.develop
CODE := gateway tests bench
ARGS ?=

.DEFAULT_GOAL := run
.PHONY: run test lint bench torture wheel system clean

run: $(INSTALLED) ## starts the gateway on SQLite; settings by ARGS="--port 9000" or GATEWAY_…
	@exec $(BIN)/gateway serve $(ARGS)

# Those that start whole gateways have the machine to themselves; the others mostly wait, so two run at a time.
test: $(DEVELOP) system lint ## everything but the long tests
	$(BIN)/pytest -m "not torture" -n 2 --dist loadfile --ignore tests/e2e
	$(BIN)/pytest -m "not torture" tests/e2e

lint: $(DEVELOP)
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/mypy

torture: $(DEVELOP) system ## the long tests: kill -9, stalled peers, thousands of clients
	$(BIN)/pytest -m torture $(ARGS)

bench: $(DEVELOP) ## the measurements of the README
	$(BIN)/python -m bench $(ARGS)

wheel: $(DEVELOP) ## dist/*.whl
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

clean:
	rm -rf $(VENV) dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(INSTALLED): pyproject.toml
	@python=; for each in python3.11 python3 python3.12 python3.13 python3.14; do \
		if $$each -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then python=$$each; break; fi; \
	done; \
	if [ -z "$$python" ]; then echo "make: Python 3.11 or newer is needed and was not found" >&2; exit 1; fi; \
	test -x $(BIN)/python || $$python -m venv $(VENV) || \
		{ echo "make: $$python cannot make a virtual environment: install its venv package" >&2; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

# pip reads dependency groups since 25.1, which $(INSTALLED) has seen to.
$(DEVELOP): $(INSTALLED)
	$(BIN)/python -m pip install --quiet --group dev
	@touch $@

# What the tests start beside Python: Redis, and Chromium with its driver.
system:
	@missing=; \
	command -v redis-server >/dev/null || missing="$$missing redis-server"; \
	command -v chromium >/dev/null || missing="$$missing chromium"; \
	command -v chromedriver >/dev/null || missing="$$missing chromium-driver"; \
	[ -n "$$missing" ] || exit 0; \
	sudo=; [ "$$(id -u)" = 0 ] || sudo="sudo -n"; \
	if command -v apt-get >/dev/null && $$sudo true 2>/dev/null; then \
		echo "installing$$missing"; \
		$$sudo apt-get update -qq && DEBIAN_FRONTEND=noninteractive $$sudo apt-get install -y -qq $$missing; \
	else \
		echo "make: the tests need$$missing: install them, or run this with rights to use apt-get" >&2; exit 1; \
	fi
