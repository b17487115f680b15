#!/bin/sh
# Install pinned packages, and nothing they do not name, into the environment of the images, with the configuration and
# certificates of the build's secrets.
#
# Left out is what cannot be of use there: tests, C headers (there is no compiler), Arrow's RPC library, and bytecode of
# modules that nobody imports. Bytecode of the others is made by importing them in the Dockerfile; a read-only root could
# not keep it later.
set -eu
[ ! -s /run/secrets/pip ] || export PIP_CONFIG_FILE=/run/secrets/pip
[ ! -s /run/secrets/ca ] || export PIP_CERT=/run/secrets/ca
# With the pip of the base image; the environment has none.
PIP_CACHE_DIR=/root/.cache/pip PATH=${PATH#/opt/whence/bin:} python -m pip --python /opt/whence/bin/python install \
  --no-deps --no-compile -qq --disable-pip-version-check --no-input --root-user-action=ignore "$@"
packages=/opt/whence/lib/python3.11/site-packages
find $packages -depth -type d \( -name tests -o -name include \) -exec rm -rf {} +
rm -f $packages/pyarrow/lib*flight*.so* $packages/pyarrow/_flight*.so
