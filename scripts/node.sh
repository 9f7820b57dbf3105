#!/usr/bin/env bash
# Prints where the Node.js of the container image is on this machine, taking it out of the image the first time.
#
#   node.sh 24|22
set -euo pipefail
cd "$(dirname "$0")/.."

major=$1
tag=$(bash sandbox/image/build.sh --digest runtime | cut -c1-12)
dir=${CARGO_TARGET_DIR:-target}/node/$tag
if [ ! -x "$dir/node$major" ]; then
  mkdir -p "$dir"
  container=$(docker create "hearth-runtime:$tag" /nothing)
  trap 'docker rm "$container" >/dev/null' EXIT
  # A name of its own, since tests that need it call this at the same time.
  docker cp "$container:/opt/node$major/bin/node" "$dir/node$major.$$" >/dev/null
  mv "$dir/node$major.$$" "$dir/node$major"
fi
realpath "$dir/node$major"
