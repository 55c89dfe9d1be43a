#!/usr/bin/env bash
# Checks everything of Crabshack on this machine, and changes nothing. Works for services (deploy.sh) and
# for run-local.sh.
#
#   validate-cluster.sh      a table: `ok`, `look` (works, but worth a look) or `FAIL`
#
# Exit code 0: nothing failed. 1: something did.
set -euo pipefail

# shellcheck source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
# shellcheck source=lib/local.sh
source "$SCRIPTS_DIR/lib/local.sh"
# shellcheck source=lib/local_down.sh
source "$SCRIPTS_DIR/lib/local_down.sh"
# shellcheck source=lib/service_files.sh
source "$SCRIPTS_DIR/lib/service_files.sh"
# shellcheck source=lib/services.sh
source "$SCRIPTS_DIR/lib/services.sh"
# shellcheck source=lib/checks.sh
source "$SCRIPTS_DIR/lib/checks.sh"

CHECKS=0
FAILURES=0

main() {
  case "${1:-}" in
    '') ;;
    -h | --help) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0" && return ;;
    *) fail "unknown argument: $1" "see: $0 --help" ;;
  esac
  become_root "$0" "$@"
  exec 3>&2
  local_layout
  if [[ -e "$UNITS/$(part_service coordinator)" ]]; then
    services_layout
    check_services
  elif [[ -e "$DATA_DIR/.crabshack-local" ]]; then
    check "coordinator" check_process "$COORDINATOR_PID" "$COORDINATOR"
    check "node agent" check_process "$NODE_AGENT_PID" "$NODE_AGENT"
  else
    fail "Crabshack is not installed here" "infra/scripts/deploy.sh installs services, infra/scripts/run-local.sh starts without"
  fi
  check_machine
  printf '%s checks, %s failed\n' "$CHECKS" "$FAILURES"
  ((FAILURES == 0))
}

# Where an installation as services has what local_layout says of the other one.
services_layout() {
  DATA_DIR="$STATE"
  SECRET_FILE="$ADMIN_SECRET"
  NODE_AGENT="$RELEASES/node-agent/crabshack-node-agent"
  API_URL="http://$(socket_address crabshack-api.socket)"
  UI_PORT="$(setting coordinator CRABSHACK_UI_PORT 3000)"
  HEALTH_ADDRESS="$(socket_address crabshack-node-agent-health.socket)"
  CRABSHACK_AGENT_LISTEN="$(socket_address crabshack-agents.socket)"
  CRABSHACK_DATA_PLANE="$(socket_address crabshack-node-agent.socket)"
  POOL="$(setting node-agent CRABSHACK_POOL 10.201.0.0/16)"
}

check_services() {
  local part unit
  for part in "${PARTS[@]}"; do
    for unit in $(part_sockets "$part") "$(part_service "$part")"; do
      check "$unit" check_unit "$unit"
    done
    check "$part at boot" check_enabled "$(part_service "$part")"
    check "$part release" check_release "$part"
  done
}

check_machine() {
  check "API" check_api
  check "browsers" check_ui "$UI_PORT"
  trap api_close EXIT
  api_setup "$API_URL" "$SECRET_FILE"
  check "admin secret" check_secret_opens
  check "nodes" check_nodes
  check "instances" check_instances
  check "agent listener" check_certificate "${CRABSHACK_AGENT_LISTEN:-127.0.0.1:7701}"
  check "data plane" check_certificate "${CRABSHACK_DATA_PLANE:-127.0.0.1:7702}"
  check "node agent" check_ready "$HEALTH_ADDRESS"
  check "uplink" check_uplink "$HEALTH_ADDRESS"
  check "doctor" check_doctor "$NODE_AGENT" "$HEALTH_ADDRESS"
  check "Docker" check_docker
  check "egress table" check_table
  check "routing guard" check_guard
  check "service address" check_service_address
  check "pool" check_pool "$DATA_DIR/node-agent"
  check "disk of the data" check_free "$DATA_DIR"
  check "disk of Docker" check_free "$(engine_get "$(engine_socket)" /info 2>/dev/null | jq -r '.DockerRootDir // "/var/lib/docker"')"
}

main "$@"
