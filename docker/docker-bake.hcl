# docker buildx bake --file docker/docker-bake.hcl    (from the repository's root; TAG=$(docker/tag.sh) in the environment)

variable "REGISTRY" { default = "whence" }

variable "TAG" {
  default = ""
  validation {
    condition     = TAG != "" && TAG != "latest"
    error_message = "set TAG, e.g. TAG=$(docker/tag.sh); a moving tag would let Kubeflow reuse results of old code"
  }
}

variable "VERSION" {
  default = ""
  validation {
    condition     = VERSION != ""
    error_message = "set VERSION to that of pyproject.toml; k8s/ looks for the MLflow server's image under it"
  }
}

variable "REVISION" { default = "" }

# cuda, or cpu.
variable "TORCH" { default = "cuda" }

group "default" { targets = ["stage", "mlflow"] }

target "labelled" {
  labels = {
    "org.opencontainers.image.version"  = VERSION
    "org.opencontainers.image.revision" = REVISION
  }
}

target "stage" {
  inherits = ["labelled"]
  name     = stage
  matrix = {
    stage = ["prepare", "train", "fit_factors", "inspect", "score", "validate", "generate", "compare", "mmlu", "report"]
  }
  context    = "."
  dockerfile = "docker/Dockerfile"
  target     = stage
  platforms  = ["linux/amd64"]
  tags       = ["${REGISTRY}/${replace(stage, "_", "-")}:${TAG}"]
  args       = { TORCH = TORCH }
}

# The tracking server.
target "mlflow" {
  inherits  = ["labelled"]
  context   = "mlflow"
  platforms = ["linux/amd64"]
  tags      = ["${REGISTRY}/mlflow:${VERSION}"]
}
