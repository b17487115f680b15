#!/usr/bin/env bash
# Build all images and test them: `make test-containers`. `run.sh build` only builds, with any Python 3.11 that has pip
# (PYTHON), `run.sh test` only tests what that has built. Uses docker where its daemon answers, otherwise podman, which it
# installs (Debian, as root). Without a registry the base is made from Debian's packages. Ends with 77 where neither
# docker nor podman can be had, and with 1 for whatever else is missing: nothing is passed over.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-.venv/bin/python}
build=1 test=1
case ${1:-} in
  build) test= && shift ;;
  test) build= && shift ;;
esac
scratch=$(mktemp -d)
service=
stop() {
  [ -z "$service" ] || kill "$service" 2> /dev/null || true
  rm -rf "$scratch"
}
trap stop EXIT

missing() { # what, and the exit status
  echo "container tests cannot run: $1" >&2
  exit "${2:-1}"
}
no_engine() { missing "$1" 77; }

if [ -z "${CONTAINER_ENGINE:-}" ] && ! docker info > /dev/null 2>&1; then
  CONTAINER_ENGINE=podman
fi
if [ "${CONTAINER_ENGINE:=docker}" = podman ]; then
  needed="podman runc netavark catatonit iptables debootstrap"
  if ! type podman runc debootstrap > /dev/null 2>&1; then
    [ "$(id -u)" = 0 ] || no_engine "podman, runc and debootstrap are not installed, and only root can install them ($needed)"
    command -v apt-get > /dev/null || no_engine "podman, runc and debootstrap are not installed, and there is no apt-get"
    # shellcheck disable=SC2086  # a list of words
    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=600 install -y -qq \
      --no-install-recommends $needed > /dev/null \
      || no_engine "apt-get could not install $needed"
  fi
  # Modest settings that also hold inside a virtual machine or container: the host's network, no systemd.
  cat > "$scratch/containers.conf" <<'CONF'
[containers]
default_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]
netns = "host"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "runc"
CONF
  export CONTAINERS_CONF=$scratch/containers.conf
  podman info > "$scratch/info" 2>&1 || no_engine "podman does not work here: $(tail -1 "$scratch/info")"
fi
export CONTAINER_ENGINE

export TORCH=cpu REGISTRY=localhost/whence WHENCE_TEST_SCRATCH=$scratch WHENCE_TEST_TAG
WHENCE_TEST_TAG=$(docker/tag.sh)
if [ -n "$build" ]; then
  base=$(sed -n 's/^ARG BASE=//p' docker/Dockerfile)
  if ! $CONTAINER_ENGINE image inspect "$base" > /dev/null 2>&1 && ! timeout 60 "$CONTAINER_ENGINE" pull -q "$base" > /dev/null 2>&1; then
    [ "$CONTAINER_ENGINE" = podman ] || missing "$base cannot be pulled"
    [ "$(id -u)" = 0 ] || missing "$base cannot be pulled, and making it with debootstrap takes root"
    echo "$base cannot be pulled; making its stand-in from Debian's packages"
    tests/containers/base_image.sh "$base"
  fi
  $CONTAINER_ENGINE run --rm "$base" true 2> "$scratch/error" \
    || no_engine "a container cannot be started (it takes namespaces, cgroups and an overlay): $(tail -1 "$scratch/error")"
  mapfile -t options < <("$python" tests/containers/build_settings.py "$scratch")
  docker/build.sh --pull=false --quiet "${options[@]}"
fi
[ -n "$test" ] || exit 0

if [ "$CONTAINER_ENGINE" = podman ]; then
  export DOCKER_HOST=unix://$scratch/podman.sock
  (cd "$scratch" && exec podman system service --time=0 "$DOCKER_HOST") > "$scratch/service.log" 2>&1 &
  service=$!
  for _ in $(seq 50); do [ -S "$scratch/podman.sock" ] && break || sleep 0.2; done
  [ -S "$scratch/podman.sock" ] || missing "podman's socket did not come up: $(tail -1 "$scratch/service.log")"
fi
WHENCE_IMAGE_REGISTRY=$REGISTRY OMP_NUM_THREADS=1 "$python" -m pytest tests/containers -n "${JOBS:-2}" --dist loadfile -q "$@"
