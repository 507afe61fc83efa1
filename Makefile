# `make train` and `make test` do everything on a fresh machine; `make setup` alone only prepares it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CONFIG ?= configs/push_cube_sparse.py
ARGS ?=
TORCH := $(shell sed -n 's/^\(torch==[0-9.]*\).*/\1/p' constraints.txt)

PIP := $(BIN)/pip install --quiet --disable-pip-version-check

.PHONY: setup train test test-others test-numeric test-processors lint docs gpu-check openvla-env openpi-env lerobot-env lerobot06-env

# Everything that any command, the tests and the documentation need; `make train` installs only what training needs.
setup: $(VENV)/.ready

# torch goes first: what comes after it would take the newest one, with CUDA also where there is no GPU. TORCH_CUDA=1 or
# TORCH_CUDA=0 decides where the machine that installs is not the one that computes.
$(VENV)/.train-ready: pyproject.toml constraints.txt setup/torch.sh setup/system_packages.sh setup/can_render.py setup/backports_source.py
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' || { echo "Python 3.11 or 3.12 is needed and $(PYTHON) is another (of mplib, which ManiSkill requires, there is no build for newer ones): run 'make PYTHON=python3.12 ...'; 'uv python install 3.12' brings one." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV) || { echo "Could not make a virtual environment: on Debian and Ubuntu run 'apt-get install python3-venv' as root." >&2; exit 1; }
	setup/torch.sh $(BIN)/python $(TORCH)
	$(PIP) --constraint constraints.txt --editable .
	setup/system_packages.sh $(BIN)/python
	@touch $@

$(VENV)/.ready: $(VENV)/.train-ready setup/allocator.sh
	$(PIP) --constraint constraints.txt --editable '.[test]'
	setup/allocator.sh
	@touch $@

train: $(VENV)/.train-ready
	$(BIN)/python train.py --config=$(CONFIG) $(ARGS)

# Three at a time on two cores: most tests keep one busy, and wait for processes that start. Those of one file share
# what they build. Most programs that tests compile are compiled in a hurry (tests/compiled_in_a_hurry.py); the numbers
# that must hold everywhere are seen as users compile them, in a process beside the others, which says at its end what
# it found. Octo's recorded numbers are all compared in a hurry, and some of each kind as users compile them.
# Where jemalloc is there it allocates: a twentieth less time.
JEMALLOC = $(firstword $(wildcard /usr/lib/$(shell uname -m)-linux-gnu/libjemalloc.so.2 /usr/lib64/libjemalloc.so.2))
PRELOAD = LD_PRELOAD="$(JEMALLOC)$${LD_PRELOAD:+:$$LD_PRELOAD}"
PYTEST = $(PRELOAD) $(BIN)/python -m pytest --dist=loadfile --no-loadscope-reorder
NUMERIC := $(addprefix tests/rpd_jax/learning/test_,losses.py advantages.py update_variations.py) \
	$(addprefix tests/rpd_jax/student/test_,convolution.py winograd.py)
NUMERIC_OF_OCTO := $(addprefix tests/octo_teacher/model/test_octo_reference.py::test_, \
	training_loss_and_gradients transformer_outputs_and_masks[correct-c] transformer_outputs_and_masks[old-c] \
	tokenizer_outputs[c] noise_prediction[c] sampled_actions[c] sampled_actions[d])

test:
	@$(MAKE) --no-print-directory --jobs=3 setup openpi-env lerobot-env
ifeq ($(ARGS),)
	@$(MAKE) --no-print-directory --jobs=2 test-others test-numeric
else
	$(PYTEST) --numprocesses=3 $(ARGS)
endif

test-others: setup
	$(PYTEST) --numprocesses=3 $(addprefix --ignore=,$(NUMERIC))

test-numeric: setup
	@found=$$(XLA_FLAGS= $(PYTEST) $(NUMERIC) $(NUMERIC_OF_OCTO) 2>&1); status=$$?; echo "$$found"; exit $$status

# Rounding differs between processors: the learner's numbers also hold on those without AVX, and without AVX-512. Each
# keeps one core busy: `make --jobs=2 --output-sync test-processors`.
test-processors: test-processor-SSE4_2 test-processor-AVX2

test-processor-%: setup
	$(PRELOAD) XLA_FLAGS=--xla_cpu_max_isa=$* $(BIN)/python -m pytest $(wordlist 1, 3, $(NUMERIC))

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# What only a GPU can show, ten minutes at most: gpu-check/gpu_check.json and the parts' outputs.
gpu-check: setup
	$(BIN)/python -m rpd_jax.gpu_check $(ARGS)

# An environment of the OpenVLA workers' own, without JAX: --config.teacher.python=.venv-openvla/bin/python
openvla-env:
	$(PYTHON) -m venv .venv-openvla
	setup/torch.sh .venv-openvla/bin/python $(TORCH)
	.venv-openvla/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt --requirement openvla_bridge/requirements.txt
	.venv-openvla/bin/python -c 'import openvla_bridge.model.policy'

# What the tests of policy servers speak with: openpi's own server and client, which pin numpy < 2.
openpi-env: .venv-openpi/.ready

PEERS := tests/rpd_jax/policy_server/openpi_requirements.txt
.venv-openpi/.ready: $(PEERS)
	$(PYTHON) -m venv .venv-openpi
	.venv-openpi/bin/pip install --quiet --disable-pip-version-check --requirement $(PEERS)
	@touch $@

# An environment for LeRobot's policies, without JAX: --config.teacher.python=.venv-lerobot/bin/python. LeRobot goes
# without its own requirements, of robots, simulators and datasets' videos, and of a torch with CUDA that is older than ours.
lerobot-env: .venv-lerobot/.ready

# The same of LeRobot 0.6, which runs pi0 and needs Python 3.12: --config.teacher.python=.venv-lerobot06/bin/python
lerobot06-env: .venv-lerobot06/.ready

.venv-lerobot/.ready: openvla_bridge/lerobot/requirements.txt
.venv-lerobot06/.ready: openvla_bridge/lerobot/requirements_06.txt

LEROBOT = $(filter openvla_bridge/lerobot/%,$^)
LEROBOT_PIP = $(@D)/bin/pip install --quiet --disable-pip-version-check
.venv-lerobot/.ready .venv-lerobot06/.ready: constraints.txt
	$(PYTHON) -m venv $(@D)
	setup/torch.sh $(@D)/bin/python $(TORCH)
	$(LEROBOT_PIP) --requirement $(LEROBOT)
	$(LEROBOT_PIP) --no-deps $$(sed -n 's/^# without its own requirements: //p' $(LEROBOT))
	@touch $@

# The documentation as a site that needs no network: build/site/index.html
docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
