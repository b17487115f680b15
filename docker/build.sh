#!/bin/sh
# Build the images: all of them, or those named: stages, serve, which answers questions, and mlflow, the tracking server
# (the tag of these two is the version, as k8s/ has it). Arguments that begin with -- go to the builder.
#   CONTAINER_ENGINE  docker or podman; by default docker where its daemon answers, otherwise podman
#   REGISTRY          registry and folder of the images (whence)
#   PUSH              1 pushes each image as soon as it is built
#   DIGESTS           with PUSH, the file that receives each image with its digest, for WHENCE_IMAGE_DIGESTS
#   COSIGN_KEY        with PUSH, the key that cosign signs each image with
#   TAG               of the stages' images; default: version and content, as docker/tag.sh prints it; never latest
#   TORCH             cuda, or cpu; prepare, which only looks at a model's shape, has cpu always
set -eu
cd "$(dirname "$0")/.."
. docker/engine.sh
REGISTRY=${REGISTRY:-whence}
TAG=${TAG:-$(docker/tag.sh)}
if [ "$TAG" = latest ]; then
  echo "TAG=latest moves, and Kubeflow would reuse results of old code; give a version, or leave it out" >&2
  exit 2
fi
# "stage group", one a line, from the stages' declarations, read and not run: what they import need not be here.
groups=$(python3 -c '
import ast, pathlib
for file in sorted(pathlib.Path("whence/stages").glob("*.py")):
    for call in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "Stage":
            print(file.stem, *(word.value.value for word in call.keywords if word.arg == "group"))
print("serve serving")
')
options= targets=
for argument in "$@"; do
  case $argument in
    -*) options="$options $argument" ;;
    *) targets="$targets $argument" ;;
  esac
done
[ -n "$targets" ] || targets="$(echo "$groups" | cut -d' ' -f1) mlflow"
version=$(sed -n 's/^version = "\(.*\)"$/\1/p' pyproject.toml)
revision=$(git rev-parse HEAD 2>/dev/null || echo unknown)
[ -z "$(git status --porcelain 2>/dev/null)" ] || revision=$revision-modified
labels="--label org.opencontainers.image.version=$version --label org.opencontainers.image.revision=$revision"
# Pushes an image, notes it by its digest and signs it.
publish() {
  if [ "$CONTAINER_ENGINE" = podman ]; then
    noted=$(mktemp)
    podman push --quiet --digestfile "$noted" "$1"
    pinned=$1@$(cat "$noted")
    rm "$noted"
  else
    $CONTAINER_ENGINE push --quiet "$1" > /dev/null
    repository=$($CONTAINER_ENGINE image inspect --format '{{index .RepoDigests 0}}' "$1")
    pinned=$1@${repository##*@}
  fi
  [ -z "${DIGESTS:-}" ] || echo "$pinned" >> "$DIGESTS"
  [ -z "${COSIGN_KEY:-}" ] || cosign sign --yes --key "$COSIGN_KEY" "$pinned"
}

format=
# Without it podman leaves the server's HEALTHCHECK out.
[ "$CONTAINER_ENGINE" != podman ] || format=--format=docker
for target in $targets; do
  name=$(echo "$target" | tr _ -)
  if [ "$target" = mlflow ]; then
    image=$REGISTRY/mlflow:$version
    from="--file mlflow/Dockerfile"
  else
    group=$(echo "$groups" | sed -n "s/^$target //p")
    [ -n "$group" ] || { echo "there is no stage $target; stages are" $(echo "$groups" | cut -d' ' -f1) >&2; exit 2; }
    layer=$group
    grep -q "^FROM .* AS $group$" docker/Dockerfile \
      || layer=$(sed -n "s/^$group = .*include-group = \"\([a-z]*\)\".*/\1/p" pyproject.toml)
    torch=${TORCH:-cuda}
    [ "$target" != prepare ] || torch=cpu
    image=$REGISTRY/$name:$TAG
    from="--file docker/Dockerfile --target stage --build-arg STAGE=$target --build-arg GROUP=$group"
    from="$from --build-arg LAYER=$layer --build-arg TORCH=$torch"
    if [ "$target" = serve ]; then
      image=$REGISTRY/serve:$version
      from="$from --build-arg MODULE=whence.serving.source"
    fi
  fi
  title="org.opencontainers.image.title=whence $name"
  # shellcheck disable=SC2086  # lists of words
  $CONTAINER_ENGINE build $format --tag "$image" --label "$title" $labels $options $from . \
    || { echo "$image: not built" >&2; exit 1; }
  # An image that podman has in its cache keeps the labels of the commit that was first to build it.
  # shellcheck disable=SC2086
  [ "$CONTAINER_ENGINE" != podman ] || echo "FROM $image" \
    | podman build $format --quiet --no-cache --pull=never --tag "$image" --label "$title" $labels - > /dev/null
  [ -z "${PUSH:-}" ] || publish "$image"
  echo "$image"
done
