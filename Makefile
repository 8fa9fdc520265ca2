# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
VENV ?= .venv
BIN = $(VENV)/bin
DEMO ?= runs/demo

.PHONY: demo test test-slow test-browser test-reference lint golden reference clean

demo: $(VENV)/.demo
	@bash experiments/demo.sh $(BIN) $(DEMO)

# Most of the time goes into compiling small programs that run once: a third less of it without LLVM's optimisations.
test: $(VENV)/.test
	XLA_FLAGS="$$XLA_FLAGS --xla_backend_optimization_level=0" $(BIN)/python -m pytest -n 2 --dist worksteal -q

test-slow: $(VENV)/.test
	$(BIN)/python -m pytest -m slow -q

# A report in headless Chromium; needs Debian's packages chromium and chromium-driver.
test-browser: $(VENV)/.test
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[browser]'
	$(BIN)/python -m pytest -m browser -q tests/browser

# Live, against diffusers and transformers in an environment of their own, which never meets ours.
test-reference: $(VENV)/.test $(VENV)-reference/.done
	REFERENCE_PYTHON=$(VENV)-reference/bin/python $(BIN)/python -m pytest -m reference -q tests/reference

lint: $(VENV)/.test
	$(BIN)/ruff check .

# Prints the reference programs' numbers again; needs torch, diffusers and transformers, in an environment of their own.
golden: $(VENV)-reference/.done
	for script in tests/golden/make_*.py; do PYTHONPATH=. $(VENV)-reference/bin/python $$script || exit 1; done

$(VENV)/.demo: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(VENV)/.test: $(VENV)/.demo
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev,hub,tfds]'
	@touch $@

$(VENV)-reference/.done: pyproject.toml
	$(PYTHON) -m venv $(VENV)-reference
	$(VENV)-reference/bin/python -m pip install -q 'torch==2.13.0'
	$(VENV)-reference/bin/python -m pip install -q 'diffusers==0.42.1' 'transformers==5.23.0' accelerate scikit-image
	@touch $@

clean:
	rm -rf $(VENV) $(VENV)-reference build dist *.egg-info
