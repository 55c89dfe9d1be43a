# shellcheck shell=bash
# Taking Crabshack down on one machine, with or without its data.

# Stops the instances by the API, then the two programs, then an engine that we started.
local_down() {
  stop_instances
  stop_programs
  stop_engine "$DATA_DIR/docker"
  step "Down. The data is kept in $DATA_DIR; run $0 to start again"
}

stop_instances() {
  local names name
  if ! running_pid "$COORDINATOR_PID" "$COORDINATOR" >/dev/null || ! running_pid "$NODE_AGENT_PID" "$NODE_AGENT" >/dev/null; then
    stop_containers
    return
  fi
  api_setup "$API_URL" "$SECRET_FILE"
  mapfile -t names < <(api_get /instances | jq -r '.instances[] | select(.status != "stopped") | .name')
  for name in "${names[@]}"; do
    step "Stopping instance $name"
    [[ "$(api_stream POST "/instances/$name/stop")" == stopped ]] || warn "$name did not say that it stopped"
  done
}

# Without coordinator or node agent only the engine can stop them.
stop_containers() {
  local ids
  engine_answers "$(engine_socket)" || return 0
  mapfile -t ids < <(docker ps -q --filter label=crabshack.instance)
  ((${#ids[@]} == 0)) || { step "Stopping ${#ids[@]} containers" && docker stop -t 30 "${ids[@]}" >/dev/null; }
}

stop_programs() {
  step "Stopping the node agent and the coordinator"
  stop_process "$NODE_AGENT_PID" "$NODE_AGENT" 30
  stop_process "$COORDINATOR_PID" "$COORDINATOR" 30
}

# Removes everything that the programs made on this machine. The image stays.
local_purge() {
  stop_programs
  # Without its engine nothing of the instances could be removed.
  [[ ! -d "$DATA_DIR/node-agent" ]] || ensure_engine "$DATA_DIR/docker"
  ! engine_answers "$(engine_socket)" || remove_containers_and_networks
  remove_rules
  stop_engine "$DATA_DIR/docker"
  remove_data
  step "Away. The image and Docker are kept"
}

remove_containers_and_networks() {
  local ids
  step "Removing containers and networks"
  mapfile -t ids < <(docker ps -aq --filter label=crabshack.instance)
  ((${#ids[@]} == 0)) || docker rm -f -v "${ids[@]}" >/dev/null
  mapfile -t ids < <(docker network ls -q --filter label=crabshack.instance)
  ((${#ids[@]} == 0)) || docker network rm "${ids[@]}" >/dev/null
}

# The table, the routing guard, the service address, and the two lines in Docker's chain.
remove_rules() {
  local preference
  step "Removing network rules"
  ! nft list table inet crabshack >/dev/null 2>&1 || nft delete table inet crabshack
  for preference in 99 100; do
    while ip -4 rule del pref "$preference" from "$POOL" 2>/dev/null; do :; done
  done
  ip address del "$(service_address)/32" dev lo 2>/dev/null || true
  while iptables -w 5 -D DOCKER-USER -i cs-+ -j ACCEPT 2>/dev/null; do :; done
  while iptables -w 5 -D DOCKER-USER -o cs-+ -j ACCEPT 2>/dev/null; do :; done
}

# The first usable address of the pool.
service_address() {
  local a b c d
  IFS=. read -r a b c d <<<"${POOL%/*}"
  printf '%s.%s.%s.%s\n' "$a" "$b" "$c" "$((d + 1))"
}

remove_data() {
  [[ -d "$DATA_DIR" ]] || return 0
  [[ -e "$DATA_DIR/.crabshack-local" ]] || fail "$DATA_DIR was not made by this script" "remove it by hand if it is to go"
  step "Removing $DATA_DIR"
  rm -rf --one-file-system "$DATA_DIR"
}
