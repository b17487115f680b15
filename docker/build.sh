#!/bin/sh
# Build the images: all of them, or those named: the targets of docker/Dockerfile, and mlflow, the tracking server (its
# tag is the version, as k8s/ has it). Arguments that begin with -- go to the builder.
#   CONTAINER_ENGINE  docker or podman; by default docker where its daemon answers, otherwise podman
#   REGISTRY          registry and folder of the images (whence)
#   PUSH              1 pushes each image as soon as it is built
#   TAG               of the stages' images; default: version and content, as docker/tag.sh prints it; never latest
#   TORCH             cuda, or cpu
set -eu
cd "$(dirname "$0")/.."
. docker/engine.sh
REGISTRY=${REGISTRY:-whence}
TAG=${TAG:-$(docker/tag.sh)}
if [ "$TAG" = latest ]; then
  echo "TAG=latest moves, and Kubeflow would reuse results of old code; give a version, or leave it out" >&2
  exit 2
fi
options= targets=
for argument in "$@"; do
  case $argument in
    -*) options="$options $argument" ;;
    *) targets="$targets $argument" ;;
  esac
done
if [ -z "$targets" ]; then
  targets="$(sed -n 's/^\[stages\.\(.*\)\]$/\1/p' docker/requirements/layers.toml) mlflow"
fi
version=$(sed -n 's/^version = "\(.*\)"$/\1/p' pyproject.toml)
revision=$(git rev-parse HEAD 2>/dev/null || echo unknown)
[ -z "$(git status --porcelain 2>/dev/null)" ] || revision=$revision-modified
labels="--label org.opencontainers.image.version=$version --label org.opencontainers.image.revision=$revision"
format=
# Without it podman leaves the server's HEALTHCHECK out.
[ "$CONTAINER_ENGINE" != podman ] || format=--format=docker
for target in $targets; do
  if [ "$target" = mlflow ]; then
    image=$REGISTRY/mlflow:$version
    from="--file mlflow/Dockerfile mlflow"
  else
    image=$REGISTRY/$(echo "$target" | tr _ -):$TAG
    from="--file docker/Dockerfile --target $target --build-arg TORCH=${TORCH:-cuda} ."
  fi
  # shellcheck disable=SC2086  # lists of words
  $CONTAINER_ENGINE build $format --tag "$image" $labels $options $from || { echo "$image: not built" >&2; exit 1; }
  # An image that podman has in its cache keeps the labels of the commit that was first to build it.
  # shellcheck disable=SC2086
  [ "$CONTAINER_ENGINE" != podman ] \
    || echo "FROM $image" | podman build $format --quiet --no-cache --pull=never --tag "$image" $labels - > /dev/null
  [ -z "${PUSH:-}" ] || $CONTAINER_ENGINE push --quiet "$image"
  echo "$image"
done
