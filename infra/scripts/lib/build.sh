# shellcheck shell=bash
# Building both programs from the clone.

# The folder that cargo builds into.
target_folder() {
  (cd "$REPOSITORY_DIR" && as_invoking_user cargo metadata --locked --no-deps --format-version 1 | jq -r .target_directory)
}

# build_release LOG: builds both, politely, and prints the folder that holds them.
build_release() {
  local target
  target="$(target_folder)"
  run_logged "cargo build" "$1" as_invoking_user nice -n 10 cargo build --manifest-path "$REPOSITORY_DIR/Cargo.toml" \
    --release --locked -p crabshack-coordinator -p crabshack-node-agent
  printf '%s\n' "$target/release"
}
