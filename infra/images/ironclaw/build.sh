#!/usr/bin/env bash
# Builds the image that runs IronClaw, from its package at crates.io and this machine's Rust, on the
# distribution's packages. Arguments: see infra/images/lib.sh.
#
# The program is what takes long (most of an hour on two processors), so it is kept apart from the image:
#   IRONCLAW_OPT_LEVEL=0   builds a slow program in a tenth of the time, for tests
#   IRONCLAW_JOBS=1        leaves processors to others
set -euo pipefail

IMAGE_DIR="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
IMAGE=ironclaw
VERSION=0.24.0
PACKAGES=ca-certificates,git,procps
OPT_LEVEL="${IRONCLAW_OPT_LEVEL:-2}"
# shellcheck disable=SC2034
BUILD_SETTINGS=("opt-level $OPT_LEVEL")
# shellcheck source=../lib.sh
source "$IMAGE_DIR/../lib.sh"

fill() {
  local root="$1" program
  program="$CACHE_DIR/ironclaw-$VERSION-o$OPT_LEVEL-$(uname -m)"
  [[ -x "$program" ]] || build_program "$program"
  install -m 755 "$program" "$root/usr/local/bin/ironclaw"
  # Built here, run there: a C library that is older than this machine's would not do.
  chroot --userspec=1000:1000 "$root" /usr/bin/env -i HOME=/tmp /usr/local/bin/ironclaw --version >/dev/null ||
    fail "the IronClaw that was built here does not run on Debian $SUITE" "build it on Debian 12 or Ubuntu 22.04"
}

build_program() {
  local jobs="${IRONCLAW_JOBS:-$(nproc)}"
  ensure_rust
  note "building IronClaw $VERSION (opt-level $OPT_LEVEL, $jobs jobs); this takes long, once"
  run_logged "cargo install" "$CACHE_DIR/ironclaw-cargo.log" env \
    CARGO_TARGET_DIR="$WORK_DIR/target" CARGO_PROFILE_RELEASE_OPT_LEVEL="$OPT_LEVEL" \
    CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_DEBUG=0 CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 \
    cargo install ironclaw --version "$VERSION" --locked --no-default-features --features libsql \
    --jobs "$jobs" --root "$WORK_DIR/cargo"
  rm -rf "$WORK_DIR/target"
  mv "$WORK_DIR/cargo/bin/ironclaw" "$1"
}

settings() {
  cat <<'END'
USER 1000:1000
WORKDIR /home/agent
ENTRYPOINT ["/usr/local/bin/crabshack-entrypoint"]
EXPOSE 18789
ENV HOME=/home/agent
ENV LANG=C.UTF-8
END
}

build_image "$@"
