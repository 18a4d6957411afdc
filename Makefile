PYTHON ?= python3
BIN := .venv/bin

.PHONY: test model demo chaos delivery bench-push setup clean

setup: .venv/ready ## an environment with the pinned dependencies

.venv/ready: pyproject.toml deploy/constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --require-hashes -r deploy/constraints.txt
	$(BIN)/pip install --quiet --no-deps -e .
	touch $@

test: setup ## formatting, lint, types, layers, then every test on real servers
	$(BIN)/ruff format --check app tests
	$(BIN)/ruff check app tests
	$(BIN)/mypy
	$(BIN)/lint-imports
	@status=0; \
	$(BIN)/python -m pytest -m "not alone" --numprocesses 3 --dist loadgroup || status=1; \
	$(BIN)/python -m pytest -m alone || status=1; \
	exit $$status

model: ## every state of the lock protocol's model; needs spin and gcc only
	$(PYTHON) tests/model/run.py

demo: setup ## three workers, a real Redis and a fast clock, until Ctrl-C
	$(BIN)/solocron demo

MINUTES ?= 2
REDIS ?= standalone
chaos: setup ## faults by the hundred; MINUTES, SEED, REDIS=standalone|sentinel|both, MUTATION
	@PYTHONPATH=app:tests $(BIN)/python -W ignore -m faults.campaign --minutes $(MINUTES) --redis $(REDIS) \
		$(if $(SEED),--seed $(SEED)) $(if $(MUTATION),--mutation $(MUTATION)) $(ARGS)

CLIENTS ?= 2000
NOTIFICATIONS ?= 100000
delivery: setup ## each notification to each client once; CLIENTS, NOTIFICATIONS, SEED, MUTATION
	@PYTHONPATH=app:tests $(BIN)/python -W ignore -m acceptance.delivery --clients $(CLIENTS) \
		--notifications $(NOTIFICATIONS) $(if $(SEED),--seed $(SEED)) \
		$(if $(MUTATION),--mutation $(MUTATION)) $(ARGS)

bench-push: setup ## speed and memory of WebSocket clients beside other libraries; ARGS=--quick, --help
	@PYTHONPATH=app:tests PYTHONWARNINGS=ignore $(BIN)/python -m benchmarks.push $(ARGS)

clean:
	rm -rf .venv build dist
