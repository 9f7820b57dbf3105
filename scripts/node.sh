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
  docker cp "$container:/opt/node$major/bin/node" "$dir/node$major.new" >/dev/null
  mv "$dir/node$major.new" "$dir/node$major"
fi
realpath "$dir/node$major"
