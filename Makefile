# The one list of commands. Recipes are POSIX sh and all paths are relative, so a clone may lie in a path with spaces.
# Variables: ARGS (given on to the command), PYTHON (the interpreter .venv is made with), SEEDS and STEPS (simulate).

ARGS =
SEEDS = 1 2 3
STEPS = 20000
run = @sh scripts/run.sh

.PHONY: help demo test check format simulate bench sizes clean setup

help:
	@echo 'make demo      watch a whole cluster: offers, reservations, the GPU filter, sixteen GPU tasks'
	@echo 'make test      all tests; ARGS="tests/core -k roles" for some'
	@echo 'make check     lint, format, types, import contracts, the rules of proto/'
	@echo 'make format    bring all code into form'
	@echo 'make simulate  the cluster in one thread under seeded faults; SEEDS="7 8" STEPS=100000'
	@echo 'make bench     the figures of tests/benchmarks'
	@echo 'make sizes     the ten longest modules and functions; a look, never a gate'
	@echo 'make setup     only make .venv; all others do so themselves'
	@echo 'make clean     remove .venv and everything generated'

demo:
	@sh scripts/setup.sh all
	$(run) -m bursar.cli.demo $(ARGS)

test: setup
	$(run) -m pytest $(ARGS)

check: setup
	@sh scripts/check.sh

format: setup
	$(run) -m ruff check --quiet --fix
	$(run) -m ruff format

simulate: setup
	@for seed in $(SEEDS); do sh scripts/run.sh -m bursar.cli.main simulate --seed "$$seed" --steps $(STEPS) || exit; done

bench: setup
	$(run) -m pytest tests/benchmarks -m benchmark --timeout 1200 -s $(ARGS)

sizes:
	@sh scripts/sizes.sh

setup:
	@sh scripts/setup.sh dev

clean:
	rm -rf .venv proto/gen proto/gen.tmp dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
