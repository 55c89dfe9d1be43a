# shellcheck shell=bash
# Crabshack as services of systemd: start, switch to another release, and back when that is not well.

# How long a part may take until it is well, and how often it may end before that.
WELL_SECONDS=90
ENDS_MAXIMUM=5

require_systemd() {
  [[ -d /run/systemd/system ]] || fail "systemd does not run this machine, so there can be no services" \
    "use infra/scripts/run-local.sh instead, which needs no systemd"
}

# Both ways on one machine would fight for ports, data and containers.
refuse_run_local() {
  if running_pid "$COORDINATOR_PID" "$COORDINATOR" >/dev/null || running_pid "$NODE_AGENT_PID" "$NODE_AGENT" >/dev/null; then
    fail "Crabshack runs here already, started by run-local.sh" \
      "stop it first: infra/scripts/run-local.sh --down" "its data in $DATA_DIR are taken over then, when that is $STATE"
  fi
}

# What run-local.sh left: the data are the same; what only that script uses goes away.
take_over_local() {
  [[ -e "$STATE/.crabshack-local" ]] || return 0
  step "Taking over the data that run-local.sh left in $STATE"
  if [[ ! -s "$ADMIN_SECRET" && -s "$STATE/admin-secret" ]]; then
    lay "$ADMIN_SECRET" 600 <"$STATE/admin-secret"
    note "the admin secret is taken over too"
  fi
  rm -rf "${STATE:?}/bin" "$STATE/run" "$STATE/admin-secret" "$STATE/.crabshack-local"
}

# move_sockets PART: opens anew what the settings moved; one transaction, with the service.
move_sockets() {
  local socket
  for socket in $(part_sockets "$1"); do
    if systemctl is-active --quiet "$socket" && [[ -z "$(ss -Hltn src "$(socket_address "$socket")")" ]]; then
      note "$socket moves to $(socket_address "$socket")"
      systemctl restart --no-block "$socket"
    fi
  done
}

sockets_are_open() {
  local socket
  for socket in $(part_sockets "$1"); do systemctl is-active --quiet "$socket" || return 1; done
}

# needs_restart PART: it does not run, runs another release, or is older than a file it has read.
needs_restart() {
  local part="$1" started file
  systemctl is-active --quiet "$(part_service "$part")" || return 0
  started="$(part_database "$part").release"
  [[ "$(cat "$started" 2>/dev/null)" == "$(part_release "$part")" ]] || return 0
  for file in "$(part_settings "$part")" "$UNITS/$(part_service "$part")" "$UNITS/$(part_service "$part").d"/*.conf; do
    [[ ! "$file" -nt "$started" ]] || return 0
  done
  [[ "$part" == coordinator && "$ADMIN_SECRET" -nt "$started" ]]
}

# runs_release PART RELEASE: its process is of that release.
runs_release() {
  local pid
  pid="$(systemctl show -p MainPID --value "$(part_service "$1")")"
  [[ "$(readlink "/proc/$pid/exe" 2>/dev/null)" == "$RELEASES/$2/"* ]]
}

part_is_well() {
  runs_release "$1" "$(part_release "$1")" && systemctl is-active --quiet "$(part_service "$1")" || return 1
  case "$1" in
    coordinator) curl -sf --max-time 3 "$API_URL/health" ;;
    node-agent)
      curl -sf --max-time 3 "http://$(socket_address crabshack-node-agent-health.socket)/ready" &&
        curl -sf --max-time 3 "http://$(socket_address crabshack-node-agent-health.socket)/health" | jq -e .coordinator_connected
      ;;
  esac >/dev/null
}

# await_well PART SECONDS: fails early when it ends again and again.
await_well() {
  local deadline=$((SECONDS + $2))
  until part_is_well "$1"; do
    ((SECONDS < deadline)) || return 1
    (($(systemctl show -p NRestarts --value "$(part_service "$1")") < ENDS_MAXIMUM)) || return 1
    sleep 0.3
  done
}

# bring_up PART RELEASE: switches, restarts when that is needed, and goes back when it is not well.
bring_up() {
  local part="$1" release="$2" previous
  step "$(part_service "$part"): $release"
  previous="$(part_release "$part")"
  switch_part "$part" "$release"
  systemctl daemon-reload
  # shellcheck disable=SC2046
  systemctl enable --quiet crabshack.target "$(part_service "$part")" $(part_sockets "$part")
  move_sockets "$part"
  # The sockets are opened with the service: with one alone, a connection could start it in between.
  if needs_restart "$part"; then
    systemctl restart --no-block "$(part_service "$part")"
    wait_until 15 sockets_are_open "$part" ||
      fail "a port cannot be listened on" "see: systemctl status $(part_sockets "$part" | paste -sd ' ')" \
        "if another program has it, take another: deploy.sh '' '' PORT, or CRABSHACK_UI_PORT and so on in $SETTINGS/*.env"
  else
    note "runs already"
  fi
  ! await_well "$part" "$WELL_SECONDS" || return 0
  show_journal "$part"
  if [[ -z "$previous" || "$previous" == "$release" || ! -d "$RELEASES/$previous" ]]; then
    fail "$(part_service "$part") is not well" "see: journalctl -u $(part_service "$part")"
  fi
  roll_back "$part" "$previous"
  fail "release $release is not well: $(part_service "$part") runs $previous again" \
    "the lines above say why; no instance was touched" "what was built is kept in $RELEASES/$release"
}

show_journal() { journalctl -u "$(part_service "$1")" -n 15 -o cat --no-pager 2>/dev/null | sed 's/^/    | /' >&2 || true; }

# roll_back PART RELEASE: an older program refuses a database that a newer one has changed. Only then is
# the copy taken that was made before; the newer one never was well, so it holds nobody's wish.
roll_back() {
  local part="$1" release="$2" database copy
  warn "$(part_service "$part") goes back to $release"
  switch_part "$part" "$release"
  systemctl daemon-reload
  systemctl restart --no-block "$(part_service "$part")"
  ! await_well "$part" "$WELL_SECONDS" || return 0
  database="$(part_database "$part")"
  copy="$database.of.$release"
  [[ -e "$copy" ]] || fail "$(part_service "$part") is well neither with the new release nor with $release" "see: journalctl -u $(part_service "$part")"
  warn "and its database to the copy that was made before"
  # The service goes on trying meanwhile: it must find the one or the other, and never none.
  ln -f "$database" "$database.failed"
  cp -p "$copy" "$database.new"
  mv "$database.new" "$database"
  systemctl restart --no-block "$(part_service "$part")"
  await_well "$part" "$WELL_SECONDS" ||
    fail "$(part_service "$part") is not well with $release and the database of before" "see: journalctl -u $(part_service "$part")"
}

# A token lets this node in, once.
invite_node() {
  [[ ! -s "$STATE/node-agent/node.pem" ]] || return 0
  step "Inviting this node"
  CRABSHACK_ADMIN_SECRET_FILE="$ADMIN_SECRET" CRABSHACK_PORT="$(setting coordinator CRABSHACK_PORT 7700)" \
    "$RELEASES/coordinator/crabshack" join-token | lay "$JOIN_TOKEN" 600
  # One that waits without a token would go on waiting for its back-off.
  systemctl stop "$(part_service node-agent)" 2>/dev/null || true
}

# ensure_pool SIZE RELEASE: makes the volumes' pool at the first installation; an empty size is the default one.
ensure_pool() {
  local size="$1" agent="$RELEASES/$2/crabshack-node-agent" data="$STATE/node-agent"
  if [[ ! -e "$data/pool.json" ]]; then
    step "Pool for volumes"
    install -d -m 700 "$data"
    if ! "$agent" --data-dir "$data" pool create ${size:+--size "$size"} >&2; then
      [[ -z "$size" ]] || fail "the pool was not made" "use another --pool-size, or --no-pool"
      warn "no pool was made: volumes will be plain folders, and storage_size will not be enforced"
      return
    fi
  fi
  systemctl enable --quiet "$POOL_UNIT"
  mountpoint -q "$data/instances" || systemctl start "$POOL_UNIT" || fail "the pool is not mounted" "see: systemctl status '$POOL_UNIT'"
}
