#!/usr/bin/env bash
# Installs what the tests need, builds everything once and runs all tests.
#
#   test.sh [ARGUMENTS...]    arguments go to `cargo test`, like `--test storm`
#
# The suites in tests/ make namespaces of their own and start a Docker engine inside, so they need
# root and touch nothing else. The OpenClaw image is built once and kept (see infra/images/openclaw).
set -euo pipefail

# shellcheck source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# Beyond these something hangs.
BUILD_SECONDS=1800
TEST_SECONDS=2100

main() {
  local everything=
  become_root "$0" "$@"
  install_packages "${RUN_PACKAGES[@]}" "${POOL_PACKAGES[@]}" "${UNIT_PACKAGES[@]}" "${CLOCK_PACKAGES[@]}" \
    "${REGISTRY_PACKAGES[@]}"
  ensure_rust
  if (($# == 0)); then
    step "Testing the scripts and the units"
    "$SCRIPTS_DIR/lib.test.sh"
    "$SCRIPTS_DIR/systemd.test.sh"
    everything=yes
    set -- --workspace
  fi
  "$REPOSITORY_DIR/infra/images/openclaw/build.sh" --tar-only >/dev/null
  cd "$REPOSITORY_DIR"
  step "Building the programs and the tests"
  bounded "$BUILD_SECONDS" cargo build --locked -p crabshack-coordinator -p crabshack-node-agent
  bounded "$BUILD_SECONDS" cargo test --locked --no-run "$@"
  step "Running the tests"
  bounded "$TEST_SECONDS" cargo test --locked --no-fail-fast "$@"
  [[ -z "$everything" ]] || { step "Testing the installation as services" && "$SCRIPTS_DIR/deploy.test.sh" "$(target_folder)/debug"; }
}

# bounded SECONDS COMMAND...: ends what hangs, with everything that it started.
bounded() {
  local code=0
  root_with_users_rust timeout --kill-after=30 "$@" </dev/null || code=$?
  return_target
  case "$code" in
    0) ;;
    124 | 137) fail "stopped after $(($1 / 60)) minutes: ${*:2}" ;;
    *) fail "failed (exit code $code): ${*:2}" ;;
  esac
}

main "$@"
