# Sourced: which program builds and runs containers here.
if [ -z "${CONTAINER_ENGINE:-}" ]; then
  if docker info > /dev/null 2>&1; then
    CONTAINER_ENGINE=docker
  elif command -v podman > /dev/null; then
    CONTAINER_ENGINE=podman
  else
    echo "neither a docker daemon nor podman is here; install one, or name it in CONTAINER_ENGINE" >&2
    exit 1
  fi
fi
export CONTAINER_ENGINE
