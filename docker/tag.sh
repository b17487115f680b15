#!/bin/sh
# Print the tag of the images: version, content (of everything they are made of), and -cpu where torch has no CUDA.
set -eu
cd "$(dirname "$0")/.."
version=$(sed -n 's/^version = "\(.*\)"$/\1/p' pyproject.toml)
content=$(
  find whence docker/Dockerfile docker/install.sh pyproject.toml uv.lock LICENSE \
    -type f ! -path '*/__pycache__/*' | LC_ALL=C sort | xargs sha256sum | sha256sum | cut -c1-12
)
suffix=
[ "${TORCH:-cuda}" = cuda ] || suffix=-$TORCH
echo "$version-$content$suffix"
