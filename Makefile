# Every target sets up what it needs in .venv the first time; PYTHON chooses the interpreter (3.11 or newer).
#
#   make demo                                        the whole loop on a CPU, from nothing
#   make demo ARGS="--set rollout.max_staleness=0"   the same, synchronous
#   make test   make check                           the tests; format, lint, types, import contracts
#   make shapes                                      tests of losses and batches, with shapes checked at every call
#   make soak                                        long tests that `make test` leaves out
#   make properties                                  the property tests, each with thousands of random examples

.PHONY: demo test shapes soak properties check clean
.DEFAULT_GOAL := demo

# The run loads vLLM and JAX at once, and compiles their bytecode while it trains.
demo:
	@tools/install.sh demo --no-trial
	@.venv/bin/python -W ignore::SyntaxWarning -m tools.train --config configs/demo.toml $(ARGS) # others' packages, compiled once

# Three at a time on two cores, since tests wait too; file by file, the longest first: files share servers.
test:
	@tools/install.sh dev
	.venv/bin/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder $(ARGS)

shapes:
	@tools/install.sh dev
	.venv/bin/python -m pytest -p tests.support.shapes tests/learner_jax/losses tests/learner_jax/batches \
	    --jaxtyping-packages=learner_jax.losses,learner_jax.batches,tests.support.shapes.checked $(ARGS)

soak:
	@tools/install.sh dev
	.venv/bin/python -m pytest -m soak $(ARGS)

properties:
	@tools/install.sh dev
	.venv/bin/python -m pytest -m hypothesis --hypothesis-profile=soak --timeout 14400 $(ARGS)

check:
	@tools/install.sh dev
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy
	.venv/bin/lint-imports

clean:
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find configs learner_jax rewards serving_bridge tests tools -name __pycache__ -type d -prune -exec rm -rf {} +
