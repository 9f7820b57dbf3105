#!/usr/bin/env bash
# Runs every test and says how long each step took. Starts what the tests need, and stops it again.
#
#   test.sh           everything but the long catalogue of real npm modules
#   test.sh modules   that catalogue
#   test.sh machines  a release on machines with systemd, rolled under load
set -euo pipefail
cd "$(dirname "$0")/.."

target=${CARGO_TARGET_DIR:-target}
summary=()

step() { # step NAME COMMAND...
  local name=$1 began=$SECONDS
  shift
  echo "== $name" >&2
  if ! "$@"; then
    printf '%s\n' "${summary[@]}" >&2
    echo "== $name failed after $((SECONDS - began)) s" >&2
    exit 1
  fi
  summary+=("$(printf '%5d s  %s' $((SECONDS - began)) "$name")")
}

images() { "$target/debug/hearth" image >/dev/null; }

runtime_tests() {
  local major node
  for major in 24 22; do
    node=$(scripts/node.sh "$major")
    echo "runtime on $("$node" --version)" >&2
    "$node" --test --test-reporter=dot runtime/test/*.test.js
  done
}

# The programs that functions were written for, at the versions of the lock file, outside the tree of sources.
oracles() {
  local dir=$target/oracles node
  mkdir -p "$dir"
  if ! cmp -s runtime/oracles/package-lock.json "$dir/node_modules/.installed"; then
    cp runtime/oracles/package.json runtime/oracles/package-lock.json "$dir/"
    (cd "$dir" && npm ci --ignore-scripts --omit=optional --no-audit --no-fund --silent)
    cp runtime/oracles/package-lock.json "$dir/node_modules/.installed"
  fi
  node=$(scripts/node.sh 24)
  HEARTH_ORACLES=$(realpath "$dir") "$node" --no-warnings --test --test-reporter=dot runtime/oracles/*.test.js
}

# The infrastructure's code: against the provider's schema, checkov, and the code that it serves. Two files at a time.
infrastructure_tests() {
  wait "$terraform_setup"
  basename --suffix .py --multiple tests/terraform/test_*.py |
    BINARY_UNDER_TEST="$(realpath "$target/debug/hearth")" PYTHONPATH=tests/terraform \
      xargs --max-procs 2 --max-args 1 target/terraform-test/hcl/bin/python -m unittest
}

machines() {
  wait "$terraform_setup"
  TEST_MACHINES=all BINARY_UNDER_TEST="$(realpath "$target/debug/hearth")" \
    target/terraform-test/hcl/bin/python -m unittest discover --start-directory tests/terraform --pattern test_machines.py
}

step 'what is needed' scripts/setup.sh test
step 'the AWS stand-in' scripts/setup.sh aws
step 'Docker' scripts/dockerd.sh gvisor
# Mostly waiting for downloads: while the compiler runs.
if [ "${1:-}" != modules ]; then
  scripts/setup.sh terraform &
  terraform_setup=$!
fi
step 'controls fit the code' scripts/controls.py --check
# Programs and tests in one go, so that everything is compiled once, with one set of features.
step 'compile' cargo build --workspace --all-targets --locked
step 'images' images
if [ "${1:-}" = modules ]; then
  step 'modules' cargo test --workspace --locked --test modules -- --test-threads 2
elif [ "${1:-}" = machines ]; then
  step 'machines' machines
else
  step 'runtime' runtime_tests
  step 'oracles' oracles
  step 'infrastructure' infrastructure_tests
  step 'tests' cargo test --workspace --locked --no-fail-fast -- --test-threads 2
fi
echo '== done' >&2
printf '%s\n' "${summary[@]}" >&2
