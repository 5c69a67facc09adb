# make demo: the whole flow on a small example. make test: all checks. Both set up a virtual environment first, once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
EXTRAS := tvm,gpu,serve,ray,vision,text,peers,accelerate,lightning,tensorboard,mlflow,dev

.PHONY: demo test setup docs constraints clean

demo: $(STAMP)
	$(BIN)/pruneaug run examples/digits.yaml

test: $(STAMP)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -n auto --dist worksteal
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

setup: $(STAMP)

docs: $(STAMP)
	$(BIN)/mkdocs serve

# torch first and by itself: a looser requirement would let pip take a build with several GB of CUDA packages.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "pruneaug needs Python 3.11 or later; make PYTHON=...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[$(EXTRAS)]'
	touch $@

# TVM's runtime for ARM: tests run networks that were compiled for it under an emulator, if TVM_AARCH64 names this folder.
$(VENV)/aarch64: $(STAMP)
	$(BIN)/python -m pip download --quiet --no-deps --only-binary=:all: --platform manylinux_2_28_aarch64 --dest $@.wheels \
	  $$(grep -E '^apache-tvm(-ffi)?==' constraints.txt)
	for wheel in $@.wheels/*.whl; do $(BIN)/python -m zipfile -e $$wheel $@ || exit 1; done
	rm -rf $@.wheels

# After a deliberate upgrade in .venv: pin what is installed now.
constraints:
	$(BIN)/python -m pip freeze --exclude-editable | sed 's/+cpu$$//' > constraints.txt

clean:
	rm -rf $(VENV) site
