# Everything starts here: `make demo` and `make test` make their own environment in .venv.

DATASET ?= digits
PROFILE ?= laptop
OUT ?= out/demo
OUT_LATENT ?= out/demo-latent
NAMES ?=

BIN := .venv/bin
STAMP := .venv/installed

.PHONY: help env demo demo-latent test bench results notebooks editions book slides wheelhouse check-machine resolve wheel lint clean
.DEFAULT_GOAL := help

help:
	@echo "make demo       train and distil on real images, then print what came out (minutes)"
	@echo "                choose with DATASET=digits|cifar10 PROFILE=smoke|laptop|colab|paper OUT=$(OUT)"
	@echo "make demo-latent  the same for text-to-image: captioned emoji, students for stock diffusers"
	@echo "make test       lint, the fast tests, and every notebook at the smoke profile"
	@echo "make bench      time updates and samplers against their bare parts; writes out/bench.json"
	@echo "make results    measure every model in data/pretrained again; NAMES=digits for one data set"
	@echo "make notebooks  execute the scripts again and write the .ipynb files; NAMES=\"02 03\" for some;"
	@echo "                without DATASET they walk on CIFAR-10 where it is on this disk"
	@echo "make editions   notebooks for a class, with blanks, for teachers and for nbgrader: out/editions"
	@echo "make lint       ruff, check and format, and spelling"
	@echo "make book       the notebooks as a site, with students that draw in a browser: out/book"
	@echo "make slides     slides of five notebooks for a projector, NAMES=00 for one: out/slides"
	@echo "make wheelhouse  all that the notebooks need, to install them in a room without a network"
	@echo "make check-machine  is this machine ready for a class? a minute"
	@echo "make resolve    do the tested versions fit every Python and system that the README names, and Colab?"
	@echo "make wheel      does the package work, and find its models, where it is installed from a wheel?"
	@echo "make env        only the environment, .venv"
	@echo "make clean      delete caches and out/, with the models trained there"
	@echo "On Linux without a GPU, PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu makes the"
	@echo "installation much smaller."

env: $(STAMP)

# Made once, and again when the dependencies change.
$(STAMP): pyproject.toml constraints.txt
	@set -e; \
	if ! test -x $(BIN)/python; then \
	  found=; \
	  for python in python3.11 python3.12 python3.13 python3; do \
	    if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	      found=$$python; break; \
	    fi; \
	  done; \
	  if test -z "$$found"; then \
	    echo "No Python 3.11 or newer was found: install one, then run the same command."; exit 1; \
	  fi; \
	  if ! $$found -c 'import venv, ensurepip' 2>/dev/null; then \
	    echo "$$found has no venv module: on Debian and Ubuntu, run 'sudo apt install python3-venv' first."; \
	    exit 1; \
	  fi; \
	  echo "Making .venv with $$found"; \
	  $$found -m venv .venv; \
	fi
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(STAMP)

demo: $(STAMP)
	@$(BIN)/python notebooks/tools/course.py demo --dataset '$(DATASET)' --profile '$(PROFILE)' --out '$(OUT)'

demo-latent: $(STAMP)
	@$(BIN)/python notebooks/tools/course.py demo-latent --profile '$(PROFILE)' --out '$(OUT_LATENT)'

SHAPES := --jaxtyping-packages=cfgdistill,beartype.beartype  # checked at every call

# First what comes with the package, with the kernels that PyTorch has for processors without AVX:
# they compute other last bits, as yours may. Notebooks choose them for themselves. Then everything,
# so that its summary is the last line, by two workers of one thread each: most of the time goes to
# starting processes and to small networks.
test: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	OMP_NUM_THREADS=1 ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=AVX2 \
	  $(BIN)/python -m pytest tests/test_pretrained.py -k "not wheel" $(SHAPES)
	$(BIN)/python -m pytest tests --numprocesses 2 --dist loadgroup --no-loadscope-reorder $(SHAPES)

bench: $(STAMP)
	@$(BIN)/python tests/bench.py --dataset '$(DATASET)' --profile '$(PROFILE)'

results: $(STAMP)
	@$(BIN)/python data/make_results.py $(NAMES)

notebooks: $(STAMP)
	@$(BIN)/python notebooks/tools/course.py build $(NAMES) --profile '$(PROFILE)' \
	  $(if $(filter file,$(origin DATASET)),,--dataset '$(DATASET)')

editions: $(STAMP)
	@$(BIN)/python notebooks/tools/editions.py $(NAMES)

# Read it with: python -m http.server --directory out/book
book: $(STAMP)
	@$(BIN)/python notebooks/tools/book.py

slides: $(STAMP)
	@$(BIN)/python notebooks/tools/slides.py $(NAMES)

# For machines of the same system and the same Python as this one.
wheelhouse: $(STAMP)
	@set -e; away=$$(mktemp -d); trap 'rm -rf "$$away"' EXIT; git archive HEAD | tar -x -C "$$away"; \
	$(BIN)/python -m pip wheel --disable-pip-version-check --wheel-dir out/wheelhouse \
	  -c constraints.txt "$$away[notebooks]"

check-machine: $(STAMP)
	@$(BIN)/python notebooks/tools/machine.py

# Asks the package index alone, and installs nothing but uv.
resolve: $(STAMP)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check 'uv>=0.9'
	@set -e; export MACOSX_DEPLOYMENT_TARGET=14.0; \
	for python in 3.11.0 3.12.0 3.13.0; do \
	  for system in linux macos windows; do \
	    echo "Python $$python on $$system"; \
	    $(BIN)/uv pip compile --quiet --no-header --python-version $$python \
	      --python-platform $$system --only-binary :all: -c constraints.txt --extra dev pyproject.toml >/dev/null; \
	  done; \
	done
	@set -e; names=$$($(BIN)/python -c "import re, tomllib; \
	  project = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
	  print(*(re.match(r'[\w-]+', each)[0] for each in project['dependencies']))"); \
	for python in 3.12.0 3.13.0; do \
	  echo "Python $$python on Colab"; printf '%s\n' $$names ipywidgets ipython | \
	    $(BIN)/uv pip compile --quiet --no-header --python-version $$python --python-platform linux \
	      --only-binary :all: -c notebooks/tools/colab.txt - >/dev/null; \
	done

# The last commit as others get it: built, installed and used far from this checkout.
wheel: $(STAMP)
	@set -e; python=$$PWD/$(BIN)/python; away=$$(mktemp -d); trap 'rm -rf "$$away"' EXIT; \
	mkdir "$$away/source" "$$away/work"; git archive HEAD | tar -x -C "$$away/source"; cd "$$away/work"; \
	$$python -m pip wheel --quiet --no-deps --wheel-dir .. ../source; \
	$$python -m pip install --quiet --no-deps --target ../site ../*.whl; \
	size=$$(cat ../*.whl | wc -c); echo "The wheel has $$size bytes."; test $$size -lt 100000000; \
	export CI=1 PYTHONPATH="$$away/site"; \
	$$python -c "import cfgdistill, cfgdistill.training.checkpoints as c, cfgdistill.course.pretrained as p; \
	  assert cfgdistill.__file__.startswith('$$away') and p.names() and c.git_commit() is None"; \
	$$python -m cfgdistill sample digits/stage-two/steps-4; \
	$$python -m cfgdistill sample emoji/stage-two/steps-4 --prompt "red heart"; \
	$$python -m cfgdistill export emoji/stage-two/steps-4

lint: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/codespell

clean:
	rm -rf out .pytest_cache .ruff_cache
	find cfgdistill data notebooks tests -name __pycache__ -prune -exec rm -rf {} +
