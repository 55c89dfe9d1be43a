# shellcheck shell=bash
# The Docker engine of this machine.

DAEMON_CONFIG=/etc/docker/daemon.json

# Path of the engine's socket.
engine_socket() {
  local url="${DOCKER_HOST:-unix:///var/run/docker.sock}"
  printf '%s\n' "${url#unix://}"
}

# engine_get SOCKET PATH: one call of the Engine API.
engine_get() { curl -sS --fail --max-time 20 --unix-socket "$1" "http://docker$2"; }

engine_answers() { engine_get "$1" /_ping >/dev/null 2>&1; }

# ensure_engine STATE_DIR: a running engine that keeps containers over its own restart. One that was
# there is reloaded only; without systemd one is started, with its pid and log in STATE_DIR.
ensure_engine() {
  local state="$1" socket
  socket="$(engine_socket)"
  if engine_answers "$socket"; then
    reload_for_live_restore "$socket"
    return
  fi
  [[ -z "${DOCKER_HOST:-}" ]] || fail "no Docker engine answers at DOCKER_HOST=$DOCKER_HOST" "start it, or unset DOCKER_HOST"
  write_live_restore
  if [[ -d /run/systemd/system ]]; then
    step "Starting Docker with systemd"
    systemctl enable --now docker >&2 || fail "docker.service does not start" "see: journalctl -u docker"
  else
    step "Starting Docker (no systemd here; log: $state/dockerd.log)"
    mkdir -p "$state"
    start_process "$state/dockerd.pid" "$state/dockerd.log" "$(dockerd_program)"
  fi
  # After a crash an engine can need one time-out of its own before it listens.
  wait_until 60 engine_answers "$socket" ||
    fail "Docker does not answer at $socket" "its log: $state/dockerd.log or journalctl -u docker"
}

dockerd_program() { readlink -f "$(command -v dockerd)"; }

# stop_engine STATE_DIR: only one that we started.
stop_engine() {
  [[ -f "$1/dockerd.pid" ]] || return 0
  step "Stopping the Docker engine that was started here"
  stop_process "$1/dockerd.pid" "$(dockerd_program)" 60
}

# Puts `live-restore` into the engine's configuration, keeping everything else, and says so.
write_live_restore() {
  local old='{}' new
  [[ ! -s "$DAEMON_CONFIG" ]] || old="$(cat "$DAEMON_CONFIG")"
  new="$(jq '. + {"live-restore": true}' <<<"$old" 2>/dev/null)" ||
    fail "$DAEMON_CONFIG is not valid JSON" "repair it and run this again"
  ! jq -e '."live-restore" == true' <<<"$old" >/dev/null || return 0
  mkdir -p "$(dirname "$DAEMON_CONFIG")"
  printf '%s\n' "$new" >"$DAEMON_CONFIG.new"
  mv "$DAEMON_CONFIG.new" "$DAEMON_CONFIG"
  note "changed $DAEMON_CONFIG: \"live-restore\": true (containers outlive a restart of Docker)"
}

# reload_for_live_restore SOCKET: an engine that runs is told, never restarted.
reload_for_live_restore() {
  local info
  info="$(engine_get "$1" /info)"
  ! jq -e '.LiveRestoreEnabled' <<<"$info" >/dev/null || return 0
  if jq -e '.Swarm.LocalNodeState == "active"' <<<"$info" >/dev/null; then
    warn "Docker runs in swarm mode, which excludes live-restore: containers will not outlive a restart of Docker"
    return
  fi
  # An engine with a socket of its own has a configuration of its own, which we do not know.
  [[ -z "${DOCKER_HOST:-}" ]] || { warn "the engine at $DOCKER_HOST has no live-restore" && return; }
  write_live_restore
  if [[ -d /run/systemd/system ]] && systemctl is-active --quiet docker; then
    systemctl reload docker
  else
    reload_by_pid_file /var/run/docker.pid
  fi
  wait_until 10 live_restore_enabled "$1" ||
    warn "Docker was reloaded but reports no live-restore: containers will not outlive a restart of Docker"
}

reload_by_pid_file() {
  local pid
  pid="$(running_pid "$1" "$(dockerd_program)")" ||
    { warn "the running Docker engine was not found by $1: send it SIGHUP to take live-restore" && return; }
  kill -HUP "$pid"
  note "Docker was told to read its configuration again"
}

live_restore_enabled() { engine_get "$1" /info | jq -e .LiveRestoreEnabled >/dev/null; }
