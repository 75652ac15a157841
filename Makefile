# Every target sets up what it needs on a fresh machine: .venv from constraints.txt, then the work.
# Python compiles what it imports; compiling all that is installed takes two minutes.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test sweep documents check selectors zoo peers frameworks compiled rtx oracles properties madtp madtp-train gpu clean setup

setup: $(READY)

# tritonclient has Triton's message classes, which tests/serving reads; without its
# dependencies, which are older than ours.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --disable-pip-version-check --no-compile torch==2.13.0 -c constraints.txt
	$(BIN)/pip install -q --disable-pip-version-check --no-compile -e '.[dev]' -c constraints.txt
	$(BIN)/pip install -q --disable-pip-version-check --no-deps tritonclient==2.73.0
	touch $(READY)

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Two workers of one thread; a file stays on one of them, with the exports that its tests share.
# The vectors are those in the repository; `make oracles` takes all that are there, `make sweep`
# what is long.
test sweep documents: export OMP_NUM_THREADS ?= 1
test: export SECATEUR_ORACLES ?= $(CURDIR)/tests/oracles/data
test: $(READY)
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not sweep and not documents"

sweep: $(READY)
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m sweep

# Everything that a how-to page shows and every example script, run.
documents: $(READY)
	$(BIN)/python -m pytest -n 2 --dist loadfile -m documents tests/hygiene

demo: $(READY)
	$(BIN)/secateur deploy examples/minilm/recipe.yaml

# The zoo file (SECATEUR_ZOO) builds its models with timm and torchvision. torchvision comes
# without its dependencies, since it would pull a second torch, and both live in an environment
# of their own on top of .venv, since transformers does not load beside a torchvision that
# belongs to another torch. ZOO takes options, e.g. ZOO='--shard 1/8'.
ZOO_VENV := build/zoo-venv

$(ZOO_VENV)/.ready: $(READY)
	$(PYTHON) -m venv $(ZOO_VENV)
	echo "import site; site.addsitedir('$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')')" > $$($(ZOO_VENV)/bin/python -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')/on_top_of.pth
	$(ZOO_VENV)/bin/pip install -q --disable-pip-version-check --no-compile --no-deps timm==1.0.31 torchvision==0.29.2
	touch $@

zoo: $(ZOO_VENV)/.ready
	$(ZOO_VENV)/bin/python tests/zoo/run.py $(ZOO)

# Files that the converters of TensorFlow and JAX write, in an environment of its own on top of
# .venv: both are large (2 GB) and nothing else needs them. `make test` runs scikit-learn's.
FRAMEWORKS_VENV := build/frameworks-venv

$(FRAMEWORKS_VENV)/.ready: $(READY) tests/frameworks/requirements.txt
	$(PYTHON) -m venv $(FRAMEWORKS_VENV)
	echo "import site; site.addsitedir('$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')')" > $$($(FRAMEWORKS_VENV)/bin/python -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')/on_top_of.pth
	$(FRAMEWORKS_VENV)/bin/pip install -q --disable-pip-version-check --no-compile --no-deps -r tests/frameworks/requirements.txt
	touch $@

frameworks: $(FRAMEWORKS_VENV)/.ready
	$(FRAMEWORKS_VENV)/bin/python -m pytest tests/frameworks/test_converters.py

# Torch-Pruning and onnxsim beside the zoo's libraries, without their dependencies, which are
# there. PEERS takes options, e.g. PEERS='--shard 1/8 --add'.
PEERS_VENV := build/peers-venv

$(PEERS_VENV)/.ready: $(ZOO_VENV)/.ready
	$(PYTHON) -m venv $(PEERS_VENV)
	for venv in $(BIN) $(ZOO_VENV)/bin; do \
	  echo "import site; site.addsitedir('$$($$venv/python -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')')"; \
	done > $$($(PEERS_VENV)/bin/python -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')/on_top_of.pth
	$(PEERS_VENV)/bin/pip install -q --disable-pip-version-check --no-compile --no-deps torch-pruning==1.6.1 onnxsim==0.8.1
	touch $@

peers: $(PEERS_VENV)/.ready
	$(PEERS_VENV)/bin/python benchmarks/structural_peers.py $(PEERS)

# Engines of TensorRT-RTX for every transformer of the zoo and the examples; needs no GPU. RTX takes
# options, e.g. RTX='--shard 1/8 --add' or RTX='--only bert'.
rtx: $(ZOO_VENV)/.ready
	$(ZOO_VENV)/bin/python tests/rtx/run.py $(RTX)

# The analysis, the removal and the norms compiled with mypyc, in build/compiled, and their tests on that form,
# of which one holds that it is that form. Most of the 5 to 10 minutes is compiling.
compiled: $(READY)
	rm -rf build/compiled build/mypyc build/lib.*
	SECATEUR_COMPILE=1 $(BIN)/pip install -q --disable-pip-version-check --no-compile --no-deps --no-build-isolation --target build/compiled .
	PYTHONPATH=build/compiled SECATEUR_FORM=compiled $(BIN)/python -m pytest -n 2 --dist loadfile tests/passes tests/laws tests/calibration/test_importance.py -m "not sweep"

oracles: $(READY)
	$(BIN)/python -m pytest tests/oracles

# Every token selector in a ViT, a CLIP tower and a LLaVA, and engines of all of them.
# SELECTORS takes options, e.g. SELECTORS='--shard 1/4'.
selectors: $(READY)
	$(BIN)/python -m tests.selectors.run $(SELECTORS)

# The nightly form of a test that `make test` runs with 200 networks: -s shows the progress.
properties: $(READY)
	SECATEUR_RANDOM_GRAPHS=5000 $(BIN)/python -m pytest tests/laws/test_random_graphs.py -s

# Exports the committed models of examples/madtp, checks them, prints what pruning costs and gives.
madtp: $(READY)
	$(BIN)/python examples/madtp/table.py

# The weights of examples/madtp, from scratch; goes on where it was interrupted.
madtp-train: $(READY)
	$(BIN)/python examples/madtp/train.py dense
	$(BIN)/python examples/madtp/train.py madtp 0.5
	$(BIN)/python examples/madtp/train.py madtp 0.6 0.7 0.8 --start 0.5
	$(BIN)/python examples/madtp/train.py madtp 0.8 --taught

# On a machine with a CUDA device: the tests that need one, then probes, parity and times as a
# table and JSON, in 8 minutes. Without one it says, cell by cell, why it did not run.
# GPU takes options, e.g. GPU='--bundle build/demo/minilm'.
gpu: $(READY)
	$(BIN)/python -m pytest tests/gpu -n 0
	$(BIN)/python -m benchmarks.gpu.programme $(GPU)

clean:
	rm -rf build dist *.egg-info
