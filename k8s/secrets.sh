#!/bin/sh
# Makes the secrets of an overlay, and of the one it builds on, from their examples: every empty value becomes a random
# one. Files that are there already are left as they are.
set -eu
cd "$(dirname "$0")/overlays"
[ -d "${1:-}" ] || {
  echo "usage: $0 OVERLAY, one of: $(echo *)" >&2
  exit 64
}
folders=$1
for other in $(sed -n 's|^ *- \.\./\([a-z0-9-]*\)$|\1|p' "$1/kustomization.yaml"); do folders="$folders $other"; done
umask 077
for folder in $folders; do
  for example in "$folder"/*.example; do
    [ -e "$example" ] || continue
    file=${example%.example}
    if [ -e "$file" ]; then
      echo "$file is there already"
      continue
    fi
    while IFS= read -r line; do
      case $line in
        \#*) continue ;;
        *=) echo "$line$(od -An -N24 -tx1 /dev/urandom | tr -d ' \n')" ;;
        *) echo "$line" ;;
      esac
    done < "$example" > "$file"
    echo "$file made"
  done
done
