#!/usr/bin/env bash
# Takes the figures that the project promises, at full size, with release builds.
#
#   measure.sh         lists them
#   measure.sh NAME    prints a table and, as its last line, one JSON object: {"name", "figures": {...}}
set -euo pipefail

# shellcheck source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

main() {
  local code=0
  become_root "$0" "$@"
  install_packages "${RUN_PACKAGES[@]}" "${IMAGE_PACKAGES[@]}" "${REGISTRY_PACKAGES[@]}"
  ensure_rust
  cd "$REPOSITORY_DIR"
  root_with_users_rust cargo run --release --locked --quiet -p crabshack-tests --bin measure -- "$@" || code=$?
  return_target
  exit "$code"
}

main "$@"
