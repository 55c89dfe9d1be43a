# shellcheck shell=bash
# The Rust toolchain of the person who builds.

RUST_MINIMUM=1.95

# version_at_least MINIMUM VERSION: compares dotted numbers.
version_at_least() { [[ "$(printf '%s\n%s\n' "$1" "$2" | sort -V | head -n 1)" == "$1" ]]; }

# Puts the invoking user's cargo on PATH.
cargo_on_path() {
  local folder
  folder="$(invoking_home)/.cargo/bin"
  if [[ -d "$folder" && ":$PATH:" != *":$folder:"* ]]; then export PATH="$folder:$PATH"; fi
}

# Prints cargo's version, or nothing.
cargo_version() { as_invoking_user cargo --version 2>/dev/null | awk '{print $2}' || true; }

# True when there is a cargo that can build the workspace.
rust_present() {
  local found
  found="$(cargo_version)"
  [[ -n "$found" ]] && version_at_least "$RUST_MINIMUM" "$found"
}

# Installs Rust by rustup when there is no cargo that is new enough.
ensure_rust() {
  local log
  cargo_on_path
  rust_present && return
  step "Installing Rust $RUST_MINIMUM or later with rustup"
  log="$(mktemp /tmp/crabshack-rustup.XXXXXX)"
  chmod 644 "$log"
  if as_invoking_user sh -c 'command -v rustup' >/dev/null 2>&1; then
    run_logged "updating Rust" "$log" as_invoking_user rustup toolchain install stable --profile minimal
    run_logged "choosing the stable toolchain" "$log" as_invoking_user rustup default stable
  else
    run_logged "installing Rust" "$log" as_invoking_user sh -c \
      'curl --proto "=https" --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y --profile minimal --default-toolchain stable --no-modify-path'
  fi
  rm -f "$log"
  cargo_on_path
  rust_present || fail "there is still no cargo $RUST_MINIMUM or later (found: $(cargo_version))" \
    "install Rust by hand (https://rustup.rs) and run this again"
}

# Adds rustfmt and clippy when they are missing.
ensure_rust_tools() {
  as_invoking_user cargo fmt --version >/dev/null 2>&1 && as_invoking_user cargo clippy --version >/dev/null 2>&1 && return
  as_invoking_user rustup component add rustfmt clippy >&2 ||
    fail "rustfmt or clippy is missing" "install both for this toolchain: rustup component add rustfmt clippy"
}
