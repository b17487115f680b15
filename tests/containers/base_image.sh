#!/usr/bin/env bash
# Make the images' base where no registry can be reached: Debian and its Python from Debian's packages, under the real
# base's name, so that the Dockerfile builds unchanged. What is tested with it is ours, not Docker Hub's Python.
set -euo pipefail
name=$1
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
debootstrap --variant=minbase --include=python3,python3-venv,python3-pip,ca-certificates bookworm "$folder/root" \
  > "$folder/log" 2>&1 || { tail -20 "$folder/log" >&2; echo "debootstrap failed; it needs root and Debian's archive" >&2; exit 1; }
cd "$folder/root"
ln -s python3 usr/bin/python
rm -f usr/lib/python3*/EXTERNALLY-MANAGED
# What the real slim base does not have either.
rm -rf usr/share/{doc,man,locale,info} var/lib/apt/lists/* var/cache/apt/* var/log/*
find usr/lib/python3* -depth -type d -name __pycache__ -exec rm -rf {} +
tar --create --one-file-system --exclude './proc/*' --exclude './sys/*' --exclude './dev/*' . | podman import --quiet - "$name"
