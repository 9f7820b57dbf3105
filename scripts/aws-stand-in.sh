#!/usr/bin/env bash
# Runs the stand-in for AWS services with the Python that has it; `setup.sh aws` installs it. Flags as in aws-stand-in.py.
set -euo pipefail
cd "$(dirname "$0")/.."

for python in target/aws-stand-in/bin/python python3; do
  if command -v "$python" >/dev/null && "$python" -c 'import moto.server' 2>/dev/null; then
    exec "$python" scripts/aws-stand-in.py "$@"
  fi
done
echo 'aws-stand-in: it is not installed: run scripts/setup.sh aws' >&2
exit 1
