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

# as_invoking_user COMMAND...: builds belong to the person, not to root.
as_invoking_user() {
  if [[ -n "${SUDO_USER:-}" && "$SUDO_USER" != root ]]; then
    sudo -u "$SUDO_USER" -H --preserve-env="PATH,CI,CARGO_TARGET_DIR" -- "$@"
  else
    "$@"
  fi
}
