# shellcheck shell=bash
# Taking the services off this machine, with or without the data.

# Stops instances and both services and removes what was installed; data and settings stay.
uninstall_services() {
  step "Stopping the services"
  # Before the instances: the node agent would start again what is stopped.
  systemctl stop crabshack.target 2>/dev/null || true
  # All of it is on its way down now; this waits for it.
  systemctl stop "$(part_service node-agent)" "$(part_service coordinator)" crabshack.slice 2>/dev/null || true
  # shellcheck disable=SC2046
  systemctl disable --quiet crabshack.target $(part_sockets node-agent) "$(part_service node-agent)" \
    $(part_sockets coordinator) "$(part_service coordinator)" 2>/dev/null || true
  stop_containers
  systemctl disable --now --quiet "$POOL_UNIT" 2>/dev/null || true
  step "Removing programs and units"
  remove_service_files
  systemctl daemon-reload
  # shellcheck disable=SC2046
  systemctl reset-failed $(part_sockets node-agent) "$(part_service node-agent)" \
    $(part_sockets coordinator) "$(part_service coordinator)" "$POOL_UNIT" 2>/dev/null || true
  rm -f "$JOIN_TOKEN"
}

# Everything else that the services made on this machine. Docker and the images stay.
purge_services() {
  ! engine_answers "$(engine_socket)" || remove_containers_and_networks
  remove_rules
  ! mountpoint -q "$STATE/node-agent/instances" || umount "$STATE/node-agent/instances"
  step "Removing $STATE and $SETTINGS"
  rm -rf --one-file-system "$STATE/coordinator" "$STATE/node-agent"
  # Only when nothing of somebody else is in it.
  rmdir --ignore-fail-on-non-empty "$STATE" 2>/dev/null || true
  rm -rf "$SETTINGS"
  ! getent passwd crabshack >/dev/null || userdel crabshack 2>/dev/null || warn "the user crabshack could not be removed"
  ! getent group crabshack >/dev/null || groupdel crabshack 2>/dev/null || true
}
