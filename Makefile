# Two commands do everything on a fresh machine: `make quickstart` and `make test`.
PYTHON ?= python3
VENV   ?= .venv
RUN    := $(VENV)/bin/python
PLAN   ?= .venv-plan
NEWEST ?= .venv-newest

# glibc asks for huge pages: the buffers of a training step are mapped anew each time, and with small pages a third of
# a CPU's time goes into page faults. Elsewhere the variable means nothing.
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1

# Many container images set it. Every process would then compile 1,500 modules anew, which takes 2.4 seconds.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help

# A new environment in the folder $(1). With the pip that Python 3.11 brings, it would take nine seconds longer.
new_environment = $(PYTHON) -m venv $(1) && $(call install,$(1)) pip==26.3
# Modules are compiled when they are first imported; most never are.
install = $(1)/bin/python -m pip install --quiet --disable-pip-version-check --no-compile

# torch first: on machines that carry its small CPU build, a later resolver run would fetch the CUDA one.
$(VENV)/.base: requirements.txt requirements-data.txt requirements-convert.txt requirements-serve.txt pyproject.toml
	$(call new_environment,$(VENV))
	$(call install,$(VENV)) torch==2.13.0
	$(call install,$(VENV)) -r requirements.txt -r requirements-data.txt -r requirements-convert.txt -r requirements-serve.txt
	$(call install,$(VENV)) --no-deps --editable .
	touch $@

$(VENV)/.test: $(VENV)/.base requirements-test.txt
	$(call install,$(VENV)) -r requirements-test.txt
	touch $@

# The TPU compiler, in an environment of its own: where it is installed, JAX takes it for its default backend.
$(PLAN)/.test: requirements.txt requirements-tpu.txt requirements-test.txt
	$(call new_environment,$(PLAN))
	$(call install,$(PLAN)) -r requirements-tpu.txt -r requirements.txt -r requirements-test.txt
	touch $@

# The newest transformers, over everything else of $(VENV): what is installed here is found first, the rest there.
$(NEWEST)/.test: $(VENV)/.test requirements-convert-newest.txt
	$(call new_environment,$(NEWEST))
	$(call install,$(NEWEST)) -r requirements-convert-newest.txt
	$(RUN) -c "import site; print(f'import site; site.addsitedir({site.getsitepackages()[0]!r})')" > \
		"$$($(NEWEST)/bin/python -c 'import site; print(site.getsitepackages()[0])')/over_venv.pth"
	touch $@

.PHONY: help quickstart taste finetune corpora test test-plan test-release lint chat serve clean

help:  ## this list
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/\1	\2/p' $(MAKEFILE_LIST) | expand -t 16

quickstart: $(VENV)/.base  ## data, stages 0 to 3, evaluation, release, report; 12 minutes on 2 cores
	$(RUN) -m qwenvl_jax.quickstart --workdir=runs/quickstart

taste: $(VENV)/.base  ## a first picture with a predicted box and caption; three minutes on 2 cores
	$(RUN) -m qwenvl_jax.quickstart --taste --workdir=runs/taste

finetune: $(VENV)/.base  ## the quickstart's model learns a new kind of dialogue by LoRA
	$(RUN) -m qwenvl_jax.quickstart --finetune --workdir=runs/quickstart

corpora: $(VENV)/.base  ## a real corpus from Debian packages: captions, maps, manuals; about 5 minutes on 2 cores
	$(RUN) -m data_pipelines.debian --output=data/corpora

test: $(VENV)/.test lint  ## linters, fast tests, slow tests
	$(RUN) -m pytest -n 2 -m "not slow"
	$(RUN) -m pytest -n 2 -m slow

test-plan: $(PLAN)/.test  ## the planner's tests that compile for TPUs
	$(PLAN)/bin/python -m pytest -m slow tests/planning

test-release: $(NEWEST)/.test  ## the tests of releases on the newest transformers
	$(NEWEST)/bin/python -m pytest -n 2 tests/conversion

lint: $(VENV)/.test  ## ruff, mypy and codespell
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
	$(RUN) -m codespell_lib

chat: $(VENV)/.base  ## talk to the quickstart's model; boxes are drawn to chat_boxes/
	$(RUN) -m qwenvl_jax.chat --workdir=runs/quickstart/stage3_sft

serve: $(VENV)/.base  ## the same in a browser, at http://127.0.0.1:8000, and as OpenAI's API
	$(RUN) -m qwenvl_jax.serve --workdir=runs/quickstart/stage3_sft --page

clean:  ## remove what the quickstart made; the environment stays
	rm -rf runs/quickstart runs/taste data/quickstart data/quickstart_catalogue data/taste
