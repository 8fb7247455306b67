# Each target is a line or two that call a tool; what they do is in that tool's files.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
LOCK := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --no-header

.PHONY: help install quickstart mnist test test-fast lint format lock steps manifests images sizes docker-quickstart sbom clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-18s %s\n", $$1, $$2}'

$(BIN)/mlcore: docker/requirements/dev.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] < (3, 11) and "mlcore needs Python 3.11 or newer: make PYTHON=python3.11 install")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r docker/requirements/dev.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

install: $(BIN)/mlcore  ## make .venv with everything for development

quickstart: install  ## the whole chain on a generated data set, with a report
	$(BIN)/python -m examples.quickstart

mnist: install  ## the MNIST line: download, train, export, evaluate, with a report
	$(BIN)/python -m examples.mnist

test: install lint  ## all checks and tests
	$(BIN)/pytest

test-fast: install  ## the tests that take seconds
	$(BIN)/pytest -m "not slow"

lint: install  ## style, types, generated files
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m steps.generate --check

format: install  ## put the code into the project's form
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

steps: install  ## write the generated parts of steps/ anew
	$(BIN)/python -m steps.generate

manifests: install  ## write image names (REGISTRY, TAG) and build/pipelines anew, and check all manifests
	REGISTRY=$(REGISTRY) TAG=$(TAG) $(BIN)/python -m manifests.generate
	$(BIN)/pytest -q -m "not slow" tests/manifests

IMAGE_VERSION = $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' mlcore/__init__.py)

images:  ## build the image of every step
	VERSION=$(IMAGE_VERSION) REVISION=$$(git rev-parse HEAD) docker buildx bake

sizes:  ## what each image weighs over its base, and why
	$(PYTHON) docker/sizes.py

docker-quickstart: images  ## the whole chain by docker run, on a generated data set
	sh examples/docker/detection.sh

sbom:  ## packages and licences of each kind of image, in build/sbom
	docker buildx bake sbom
	$(PYTHON) docker/licences.py build/sbom

# The development set first: the others take its versions, so that images run what the tests ran.
REQUIREMENTS := docker/requirements
CONVERT_LOCK := $(LOCK) -c $(REQUIREMENTS)/dev.txt
# 15 MB for the trimaps of convert, which no other step reads.
IMAGE_LOCK := $(CONVERT_LOCK) --no-emit-package=kornia-rs
# Download and extract read and write plain files, launch and deploy talk to a cluster: neither arrays, pictures, annotations nor reports.
NOT_FETCH := $(addprefix --no-emit-package=,numpy pillow lxml contextlib2 protobuf google-crc32c jinja2 markupsafe)
# Asked for by TensorFlow and TensorBoard for what no step does: build packages, Keras 3, show pages.
NOT_RUN := $(addprefix --no-emit-package=,setuptools wheel google-pasta keras namex optree rich markdown-it-py mdurl pygments \
  grpcio markdown tensorboard-data-server werkzeug)
# mlcore.detection.tensorflow does not let official.vision import it before something is used, and nothing is.
NOT_DETECTION := $(addprefix --no-emit-package=,tensorflow-datasets einops etils fsspec toml zipp \
  pandas psutil pytz tzdata)

lock:  ## resolve the requirement files with hashes from pyproject.toml
	$(LOCK) pyproject.toml $(REQUIREMENTS)/tensorflow.in --extra detection --extra serving --extra kubeflow --extra image --extra dev -o $(REQUIREMENTS)/dev.txt
	$(IMAGE_LOCK) pyproject.toml --extra image $(NOT_FETCH) -o $(REQUIREMENTS)/fetch.txt
	$(IMAGE_LOCK) pyproject.toml --extra image -o $(REQUIREMENTS)/data.txt
	$(CONVERT_LOCK) pyproject.toml --extra image -o $(REQUIREMENTS)/convert.txt
	$(IMAGE_LOCK) pyproject.toml --extra image --extra client -o $(REQUIREMENTS)/client.txt
	$(IMAGE_LOCK) pyproject.toml --extra image --extra kubeflow $(NOT_FETCH) -o $(REQUIREMENTS)/kubeflow.txt
	$(IMAGE_LOCK) pyproject.toml --extra image --extra tf $(REQUIREMENTS)/tensorflow.in $(NOT_RUN) -o $(REQUIREMENTS)/tensorflow.txt
	$(IMAGE_LOCK) pyproject.toml --extra image --extra serving $(REQUIREMENTS)/tensorflow.in $(filter-out %=grpcio,$(NOT_RUN)) -o $(REQUIREMENTS)/serving.txt
	$(IMAGE_LOCK) pyproject.toml --extra image --extra predict $(REQUIREMENTS)/tensorflow.in $(NOT_RUN) -o $(REQUIREMENTS)/predict.txt
	$(IMAGE_LOCK) pyproject.toml --extra image --extra detection $(REQUIREMENTS)/tensorflow.in $(NOT_RUN) $(NOT_DETECTION) -o $(REQUIREMENTS)/detection.txt
	$(IMAGE_LOCK) pyproject.toml --extra image --extra tf $(NOT_RUN) --overrides $(REQUIREMENTS)/gpu.in -o $(REQUIREMENTS)/tensorflow-gpu.txt
	$(IMAGE_LOCK) pyproject.toml --extra image --extra detection $(NOT_RUN) $(NOT_DETECTION) --overrides $(REQUIREMENTS)/gpu.in -o $(REQUIREMENTS)/detection-gpu.txt
	$(IMAGE_LOCK) $(REQUIREMENTS)/build.in -o $(REQUIREMENTS)/build.txt
	$(IMAGE_LOCK) $(REQUIREMENTS)/sbom.in -o $(REQUIREMENTS)/sbom.txt

clean:  ## remove what the targets made
	rm -rf build $(VENV) .pytest_cache .mypy_cache .ruff_cache *.egg-info
