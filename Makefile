PYTHON ?= python3
BIN := .venv/bin

.PHONY: test model demo chaos delivery bench-push bench-locks bench-ticks bench-stores peers-locks peers-ticks peers-node setup clean

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

bench-locks: setup ## locks per second beside other libraries; ARGS=--quick, --help
	@$(MAKE) --no-print-directory peers-locks peers-node || echo "not all peers are installed"
	@PYTHONPATH=app:tests PYTHONWARNINGS=ignore $(BIN)/python -m benchmarks.locks $(ARGS)

bench-ticks: setup ## lateness and cost of jobs beside other libraries; ARGS=--quick, --help
	@$(MAKE) --no-print-directory peers-ticks || echo "not all peers are installed"
	@PYTHONPATH=app:tests PYTHONWARNINGS=ignore $(BIN)/python -m benchmarks.ticks $(ARGS)

bench-stores: setup ## a run on a million stores beside plain statements; ARGS=--quick, --help
	@PYTHONPATH=app:tests PYTHONWARNINGS=ignore $(BIN)/python -m benchmarks.stores $(ARGS)

peers-locks: .venv-peers/locks/ready ## the libraries that bench-locks compares with
peers-ticks: .venv-peers/ticks/ready ## those that bench-ticks compares with
peers-node: .venv-peers/node/ready

.venv-peers/node/ready: tests/benchmarks/peers-node.txt
	mkdir -p .venv-peers/node
	npm install --silent --no-audit --no-fund --prefix .venv-peers/node $$(cat $<)
	touch $@

.venv-peers/%/ready: tests/benchmarks/peers-%.txt
	$(PYTHON) -m venv .venv-peers/$*
	.venv-peers/$*/bin/pip install --quiet --disable-pip-version-check -r $<
	touch $@

clean:
	rm -rf .venv .venv-peers build dist
