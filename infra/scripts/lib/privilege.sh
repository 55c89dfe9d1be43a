# shellcheck shell=bash
# Who runs the script, and for whom.

# Variables that mean something to the scripts and are kept across sudo.
KEPT_VARIABLES=NEARAI_API_KEY,NEARAI_API_URL,DOCKER_HOST,CRABSHACK_LOCAL_DIR,CRABSHACK_CACHE_DIR
KEPT_VARIABLES+=,CRABSHACK_PORT,CRABSHACK_UI_PORT,CRABSHACK_AGENT_LISTEN,CRABSHACK_DATA_PLANE,CRABSHACK_HEALTH_LISTEN
KEPT_VARIABLES+=,CRABSHACK_POOL,CRABSHACK_DNS_UPSTREAMS,CRABSHACK_UI_ZONE,CRABSHACK_PUBLIC_URL,CRABSHACK_DEBUG
KEPT_VARIABLES+=,NODE_SSH_HOST,NODE_SSH_PORT,NODE_SSH_USER,CI

# become_root SCRIPT ARGUMENTS...: starts the script again with sudo unless it runs as root.
become_root() {
  if ((EUID != 0)); then
    command -v sudo >/dev/null || fail "this needs root, and there is no sudo" "run it again as root"
    note "going on with sudo"
    exec sudo --preserve-env="$KEPT_VARIABLES" -- "$@"
  fi
  # Daemons' tools live here; `su` without a login shell leaves them out.
  export PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"
}

# The person who called sudo, or the user of this process.
invoking_user() { printf '%s' "${SUDO_USER:-$(id -un)}"; }

# Home folder of the invoking user.
invoking_home() { getent passwd "$(invoking_user)" | cut -d: -f6; }

# True when a person called us through sudo.
called_by_sudo() { [[ -n "${SUDO_USER:-}" && "$SUDO_USER" != root ]]; }

# as_invoking_user COMMAND...: builds belong to the person, not to root.
as_invoking_user() {
  if called_by_sudo; then
    # sudo would put its own PATH back.
    sudo -u "$SUDO_USER" -H -- env PATH="$PATH" "$@"
  else
    "$@"
  fi
}

# root_with_users_rust COMMAND...: runs as root, with the toolchain of the invoking user.
root_with_users_rust() {
  if called_by_sudo; then
    CARGO_HOME="$(invoking_home)/.cargo" RUSTUP_HOME="$(invoking_home)/.rustup" "$@"
  else
    "$@"
  fi
}

# Gives what root built back to the person.
return_target() {
  ! called_by_sudo || [[ ! -d "$REPOSITORY_DIR/target" ]] || chown -R --from=root "$SUDO_USER" "$REPOSITORY_DIR/target"
}
