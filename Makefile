# Each target does its own set-up; a machine with Python 3.11 is enough. The locks are complete: --no-deps adds nothing.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
AUDIT := .venv-audit
PROCESSOR ?= gpu
PRETRAINED ?= 1
IMAGE ?= ssd-algo:$(PROCESSOR)
COMPILE := $(BIN)/uv pip compile -q --python-version 3.11 --generate-hashes --no-header --no-annotate \
	--no-emit-index-url --no-emit-find-links

# Where `make sbom` writes.
SBOM ?= docker

.PHONY: install demo test lint docs bench image test-image test-image-with-engine lock sbom audit

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml requirements-dev.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --require-hashes --no-deps -r requirements-dev.txt
	$(BIN)/pip install -q --no-deps --no-build-isolation -e .
	$(BIN)/python -c "import cv2" || { apt-get update -qq && apt-get install -y -qq --no-install-recommends libgl1 libglib2.0-0; }
	touch $@

$(AUDIT)/.installed: requirements-audit.txt
	$(PYTHON) -m venv $(AUDIT)
	$(AUDIT)/bin/pip install -q --require-hashes --no-deps -r requirements-audit.txt
	touch $@

demo: install
	$(BIN)/ssd-algo demo

# Two at a time, each file in one process and on one core: threads of two that want both cores hold each other up.
test: install lint $(AUDIT)/.installed
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: install
	$(BIN)/python -c "from ssd_algo.contract import hyperparameters; print(hyperparameters.documentation(), end='')" > docs/hyperparameters.md
	$(BIN)/python docs/failures.py
	cd examples/requests && PATH="$(CURDIR)/$(BIN):$$PATH" sh make.sh

# DATA: a folder with the four channels of the image format, three classes.
bench: install
	$(BIN)/python benchmarks/check.py
	$(BIN)/python benchmarks/input_pipeline.py
	$(BIN)/python benchmarks/metrics.py
	$(BIN)/python benchmarks/report.py
	$(BIN)/python benchmarks/training_step.py
	$(BIN)/python benchmarks/checkpoint.py
	$(BIN)/python benchmarks/interruptions.py
	$(BIN)/python benchmarks/hosts.py
	$(BIN)/python benchmarks/pipe.py
	$(BIN)/python benchmarks/serving.py
	$(BIN)/python benchmarks/builtin.py
	$(BIN)/python benchmarks/accuracy.py $(DATA)

# --network host: builds need the package registry also where the engine's bridge has no way out.
image:
	docker build --network host --build-arg PROCESSOR=$(PROCESSOR) --build-arg PRETRAINED=$(PRETRAINED) -t $(IMAGE) .

test-image:
	@if docker info >/dev/null 2>&1; then $(MAKE) test-image-with-engine; \
	else echo "No container engine answers: the images are neither built nor tested."; fi

test-image-with-engine: install .venv-sdk2/.installed .venv-sdk3/.installed
	$(MAKE) image PROCESSOR=cpu PRETRAINED=0 IMAGE=ssd-algo:cpu-test
	$(MAKE) image PROCESSOR=gpu PRETRAINED=0 IMAGE=ssd-algo:gpu-test
	SSD_ALGO_IMAGES="ssd-algo:cpu-test ssd-algo:gpu-test" $(BIN)/pytest tests/image
	SSD_ALGO_IMAGE=ssd-algo:cpu-test .venv-sdk2/bin/pytest tests/sdk --ignore tests/sdk/test_sdk3.py
	SSD_ALGO_IMAGE=ssd-algo:cpu-test .venv-sdk3/bin/pytest tests/sdk/test_sdk3.py

# The two lines of the SageMaker Python SDK do not go together.
.venv-sdk%/.installed: tests/sdk/requirements-sdk%.txt
	$(PYTHON) -m venv .venv-sdk$*
	.venv-sdk$*/bin/pip install -q --require-hashes -r $<
	touch $@

lock: install
	$(COMPILE) --extra cpu --extra dev -o requirements-dev.txt pyproject.toml
	$(COMPILE) --extra cpu -o docker/requirements-cpu.txt pyproject.toml
	$(COMPILE) --extra gpu -o docker/requirements-gpu.txt pyproject.toml
	$(COMPILE) --group pyproject.toml:audit -o requirements-audit.txt
	# --no-config: the SDK needs what [tool.uv] leaves out of the image.
	$(COMPILE) --no-config --group pyproject.toml:sdk2 -o tests/sdk/requirements-sdk2.txt
	$(COMPILE) --no-config --group pyproject.toml:sdk3 -o tests/sdk/requirements-sdk3.txt

# What is in each variant of the image, by its lock. Same lock, same bytes; no network.
sbom: $(SBOM)/sbom-cpu.json $(SBOM)/sbom-gpu.json

$(SBOM)/sbom-%.json: docker/requirements-%.txt $(AUDIT)/.installed
	$(AUDIT)/bin/python -W ignore::UserWarning -m cyclonedx_py requirements --output-reproducible --short-PURLs \
		--pyproject pyproject.toml -o $@ $<

# Fails over findings only: where no service answers (exit code 2) it says so, and that is no finding.
audit: $(AUDIT)/.installed
	@PATH="$(CURDIR)/$(AUDIT)/bin:$$PATH" $(PYTHON) docker/audit.py docker/requirements-cpu.txt \
		docker/requirements-gpu.txt requirements-dev.txt requirements-audit.txt || [ $$? -eq 2 ]
