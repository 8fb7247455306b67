# Every image: `docker buildx bake` builds all, `docker buildx bake convert` one, `docker buildx bake --print` shows what would be done.
# Each variable can be set in the environment: TAG=1.2.0 REGISTRY=registry.example.org/ml docker buildx bake --push

variable "REGISTRY" { default = "mlcore" }      # what stands before an image's name
variable "TAG" { default = "latest" }
variable "VERSION" { default = "" }             # of mlcore, for the labels
variable "REVISION" { default = "" }            # commit, for the labels
variable "PYTHON_IMAGE" { default = "python:3.11-slim-bookworm" }  # releases name it with its digest
variable "PLATFORMS" { default = "" }           # "linux/amd64,linux/arm64"; empty: this machine's
variable "CACHE_FROM" { default = "" }          # "type=registry,ref=registry.example.org/ml/cache"
variable "CACHE_TO" { default = "" }
variable "ATTEST" { default = false }           # SBOM and provenance; not every builder can, a registry takes them
variable "PIP_CONFIG" { default = "" }          # pip.conf with an index of your own; mounted, never in a layer
variable "TEST_DATA" { default = "../shared/data" }  # real data sets for the tests of `check`
variable "TEST_CRDS" { default = "../shared/crds" }  # Kubeflow's API definitions, for them too

# An image for each step. The flavour says which packages it has: docker/Dockerfile, docker/requirements/.
variable "STEPS" {
  default = [
    { name = "download", flavour = "fetch" },
    { name = "extract", flavour = "fetch" },
    { name = "convert", flavour = "convert" },
    { name = "train", flavour = "detection" },
    { name = "evaluate", flavour = "detection" },
    { name = "export", flavour = "detection" },
    { name = "predict", flavour = "predict" },
    { name = "serve", flavour = "serving" },
    { name = "verify", flavour = "client" },
    { name = "versions", flavour = "client" },
    { name = "mnist-download", flavour = "data" },
    { name = "mnist-train", flavour = "tensorflow" },
    { name = "mnist-evaluate", flavour = "tensorflow" },
    { name = "launch", flavour = "kubeflow" },
    { name = "deploy", flavour = "kubeflow" },
  ]
}

# A step once more, with the packages for a part of what it does.
variable "VARIANTS" {
  default = [
    { name = "predict-client", step = "predict", flavour = "client" },  # predict --server, without TensorFlow
  ]
}

variable "LIGHT" { default = ["fetch", "data", "convert", "client", "kubeflow"] }  # flavours without TensorFlow

group "default" {
  targets = ["step", "variant"]
}

group "light" {
  targets = [for step in concat(STEPS, VARIANTS) : step.name if contains(LIGHT, step.flavour)]
}

group "tf" {
  targets = [for step in concat(STEPS, VARIANTS) : step.name if !contains(LIGHT, step.flavour)]
}

# Lint and fast tests with the packages of the images.
group "check" {
  targets = ["lint", "test"]
}

target "_common" {
  dockerfile = "docker/Dockerfile"
  contexts   = { base = "docker-image://${PYTHON_IMAGE}" }
  platforms  = PLATFORMS == "" ? [] : split(",", PLATFORMS)
  cache-from = CACHE_FROM == "" ? [] : [CACHE_FROM]
  cache-to   = CACHE_TO == "" ? [] : [CACHE_TO]
  attest     = ATTEST ? ["type=sbom", "type=provenance,mode=max"] : []
  secret     = PIP_CONFIG == "" ? [] : ["id=pip_config,src=${PIP_CONFIG}"]
}

function "labels" {
  params = [name]
  result = {
    "org.opencontainers.image.title"         = "mlcore ${name}"
    "org.opencontainers.image.description"   = "The step ${name} of mlcore"
    "org.opencontainers.image.version"       = VERSION
    "org.opencontainers.image.revision"      = REVISION
    "org.opencontainers.image.licenses"      = "Apache-2.0"
    "org.opencontainers.image.base.name"     = PYTHON_IMAGE
  }
}

target "step" {
  inherits = ["_common"]
  name     = step.name
  matrix   = { step = STEPS }
  target   = "step"
  args     = { STEP = step.name, FLAVOUR = step.flavour }
  labels   = labels(step.name)
  tags     = ["${REGISTRY}/${step.name}:${TAG}"]
}

target "variant" {
  inherits = ["_common"]
  name     = variant.name
  matrix   = { variant = VARIANTS }
  target   = "step"
  args     = { STEP = variant.step, FLAVOUR = variant.flavour }
  labels   = labels(variant.name)
  tags     = ["${REGISTRY}/${variant.name}:${TAG}"]
}

# The training steps with CUDA.
target "gpu" {
  inherits  = ["_common"]
  name      = "${step.name}-gpu"
  matrix    = { step = [for step in STEPS : step if contains(["train", "mnist-train"], step.name)] }
  target    = "step"
  platforms = ["linux/amd64"]
  args      = { STEP = step.name, FLAVOUR = "${step.flavour}-gpu" }
  labels    = labels("${step.name}-gpu")
  tags      = ["${REGISTRY}/${step.name}:${TAG}-gpu"]
}

target "lint" {
  inherits = ["_common"]
  target   = "lint"
  output   = ["type=cacheonly"]
}

target "test" {
  inherits = ["lint"]
  target   = "test"
  contexts = { test-data = TEST_DATA, test-crds = TEST_CRDS }
}

# build/sbom/<flavour>.cdx.json: packages and licences.
target "sbom" {
  inherits = ["_common"]
  name     = "sbom-${flavour}"
  matrix   = { flavour = distinct([for step in STEPS : step.flavour]) }
  target   = "sbom"
  args     = { FLAVOUR = flavour }
  output   = ["type=local,dest=build/sbom"]
}
