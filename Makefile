# Two commands need nothing else: `make demo` and `make test`. Each makes its own environment first.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup setup-tpu setup-bench setup-formats test check test-tpu test-formats demo bench chaos

shared := $(abspath $(CURDIR)/../shared)
export GEMCUTTER_BENCHMARKS ?= $(shared)/benchmarks
export GEMCUTTER_CORPUS ?= $(shared)/corpus
export GEMCUTTER_SCHEMAS ?= $(shared)/schemas

# Four devices in one process without a TPU. libtpu, which compiles for TPUs here, would else ask a metadata server of
# Google's cloud where it is, and let one process at a time load it.
virtual := PJRT_DEVICE=CPU CPU_NUM_DEVICES=4 TPU_SKIP_MDS_QUERY=1 ALLOW_MULTIPLE_LIBTPU_LOAD=1

# An environment is current when its stamp names these inputs; a moved folder counts, as environments hold their path.
digest = $(shell cat $(1) | cat - <(echo $(CURDIR)) | sha256sum | cut -c1-16)
stamp := .venv/.made-$(call digest,pyproject.toml constraints.txt)
stamp_tpu := .venv-tpu/.made-$(call digest,pyproject.toml constraints-tpu.txt)
stamp_formats := .venv-formats/.made-$(call digest,pyproject.toml tests/formats/constraints.txt)
peers := datatrove fasttext litdata litgpt mosaicml-streaming
stamps_bench := $(foreach peer,$(peers),.venv-bench/$(peer)/.made-$(call digest,tests/bench/peers/$(peer).txt))

help:
	@echo "make demo       raw text to an evaluated model on this machine, in minutes"
	@echo "make test       every test but those for TPUs, and for Keras and JAX where .venv-formats is absent"
	@echo "make check      format, lint and types"
	@echo "make test-tpu   XLA tests on 4 virtual devices"
	@echo "make test-formats  exports in Keras 3 and in the JAX package gemma"
	@echo "make bench      figures beside those of peers, into runs/bench; NAME=loader for one of them"
	@echo "make chaos      kills, stops, lost hosts and broken storage, into runs/chaos; NAME=kills for one of them"
	@echo "make setup      .venv (the others do this themselves); make setup-tpu: .venv-tpu; make setup-bench: .venv-bench"
	@echo "make setup-formats: .venv-formats"

setup: $(stamp)
setup-tpu: $(stamp_tpu)
setup-bench: $(stamps_bench)
setup-formats: $(stamp_formats)

$(stamp):
	.ci/python -m venv .venv
	.venv/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	rm -f .venv/.made-* && touch $@

# Every job runs here, too.
$(stamp_tpu):
	.ci/python -m venv .venv-tpu
	.venv-tpu/bin/python -m pip install --quiet --constraint constraints-tpu.txt --editable '.[tpu,curate,http,gcs,eval,test]'
	rm -f .venv-tpu/.made-* && touch $@

# The package gemma and kauldron, which it stands on, are bound to each other and to jax of the end of 2025 (see the
# constraints); they and clu ask for much that the model does not need, so what it needs is named. torch comes first, so
# that the CPU wheel is there before anything else asks for a torch.
$(stamp_formats):
	.ci/python -m venv .venv-formats
	.venv-formats/bin/python -m pip install --quiet --constraint tests/formats/constraints.txt torch
	.venv-formats/bin/python -m pip install --quiet --constraint tests/formats/constraints.txt --editable '.[jax,keras]' \
		chex einops etils flax grain immutabledict jaxtyping lark mediapy ml_collections pandas tensorboard \
		tensorflow_datasets typeguard
	.venv-formats/bin/python -m pip install --quiet --constraint tests/formats/constraints.txt --no-deps \
		clu gemma kauldron
	rm -f .venv-formats/.made-* && touch $@

# An environment for each peer, as their pins differ from ours. torch comes first, so that the CPU wheel is there before
# anything else asks for a torch.
$(stamps_bench):
	.ci/python -m venv $(@D)
	{ grep '^torch==' tests/bench/peers/$(notdir $(@D)).txt || true; } | xargs -r $(@D)/bin/python -m pip install --quiet
	$(@D)/bin/python -m pip install --quiet --requirement tests/bench/peers/$(notdir $(@D)).txt
	rm -f $(@D)/.made-* && touch $@

test: setup
	.venv/bin/python -m pytest

check: setup
	.venv/bin/python -m ruff format --check .
	.venv/bin/python -m ruff check .
	.venv/bin/python -m mypy

test-tpu: setup-tpu
	$(virtual) .venv-tpu/bin/python -m pytest tests/xla

test-formats: setup setup-formats
	.venv/bin/python -m pytest tests/trainer/test_export_keras.py tests/trainer/test_export_jax.py

# A peer that cannot be installed does not stop the others: it stands among the errors of the report.
bench: setup
	-$(MAKE) --keep-going $(if $(filter-out plan,$(or $(NAME),all)),setup-bench) $(if $(filter plan,$(or $(NAME),plan)),setup-tpu)
	.venv/bin/python -m tests.bench $(NAME)

# Figures only, so nothing but what `make test` needs.
chaos: setup
	.venv/bin/python -m tests.chaos $(NAME)

demo: setup
	.venv/bin/gemcutter demo $(if $(wildcard $(GEMCUTTER_BENCHMARKS)/piqa),curate.decontaminate.folder=$(GEMCUTTER_BENCHMARKS))
