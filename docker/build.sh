#!/bin/sh
# Build the images: all of them, or the targets named. Arguments that begin with -- go to the builder.
#   CONTAINER_ENGINE  docker or podman; by default docker where its daemon answers, otherwise podman
#   REGISTRY          registry and folder of the images (whence)
#   PUSH              1 pushes each image as soon as it is built
#   TAG               default: version and content, as docker/tag.sh prints it; never latest
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
  targets=$(sed -n 's/^\[stages\.\(.*\)\]$/\1/p' docker/requirements/layers.toml)
fi
version=$(sed -n 's/^version = "\(.*\)"$/\1/p' pyproject.toml)
revision=$(git rev-parse HEAD 2>/dev/null || echo unknown)
[ -z "$(git status --porcelain 2>/dev/null)" ] || revision=$revision-modified
for target in $targets; do
  image=$REGISTRY/$(echo "$target" | tr _ -):$TAG
  # shellcheck disable=SC2086  # options and engine are lists of words
  $CONTAINER_ENGINE build --file docker/Dockerfile --target "$target" --tag "$image" --build-arg TORCH="${TORCH:-cuda}" \
    --build-arg VERSION="$version" --build-arg REVISION="$revision" $options . || { echo "$image: not built" >&2; exit 1; }
  [ -z "${PUSH:-}" ] || $CONTAINER_ENGINE push --quiet "$image"
  echo "$image"
done
