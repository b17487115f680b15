#!/bin/sh
# Makes the secrets of an overlay, and of the one it builds on, from their examples: every empty value becomes a random
# one, and `your-...` is taken from the environment variable of its name. Files that are there already are left as they
# are, but refused while a placeholder is in them.
set -eu
cd "$(dirname "$0")/overlays"
[ -d "${1:-}" ] || {
  echo "usage: $0 OVERLAY, one of: $(echo *)" >&2
  exit 64
}

refuse() {
  echo "$1" >&2
  exit 65
}

# The lines of an example with their values.
filled() {
  while IFS= read -r line; do
    name=${line%%=*}
    case $line in
      \#*) continue ;;
      *=) echo "$line$(od -An -N24 -tx1 /dev/urandom | tr -d ' \n')" ;;
      *=your-*)
        value=$(printenv "$name" || true)
        case $value in
          "" | your-*) refuse "$1: $name is yours to give: export $name=... and run this again" ;;
        esac
        echo "$name=$value"
        ;;
      *) echo "$line" ;;
    esac
  done < "$1"
}

folders=$1
for other in $(sed -n 's|^ *- \.\./\([a-z0-9-]*\)$|\1|p' "$1/kustomization.yaml"); do folders="$folders $other"; done
umask 077
for folder in $folders; do
  for example in "$folder"/*.example; do
    [ -e "$example" ] || continue
    file=${example%.example}
    if [ -e "$file" ]; then
      ! grep -q '=your-' "$file" || refuse "$file still has a placeholder: $(grep -o '^.*=your-' "$file" | head -n 1)..."
      echo "$file is there already"
      continue
    fi
    text=$(filled "$example")
    printf '%s\n' "$text" > "$file"
    echo "$file made"
  done
done
