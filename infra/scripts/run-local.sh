#!/usr/bin/env bash
# Crabshack on this machine: installs what is missing, builds, starts everything, makes a first instance.
#
#   run-local.sh            start (again: changes nothing that is right already)
#   run-local.sh --json     the same; the last line of output is one JSON object
#   run-local.sh --down     stop everything, keep the data
#   run-local.sh --purge    stop everything, remove the data, containers, networks and rules
#
# Data: ${CRABSHACK_LOCAL_DIR:-/var/lib/crabshack}. The model API of the first instance: NEARAI_API_KEY
# and NEARAI_API_URL. Variables of the two programs (CRABSHACK_UI_PORT, ...) are passed on.
set -euo pipefail

# shellcheck source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
# shellcheck source=lib/local.sh
source "$SCRIPTS_DIR/lib/local.sh"
# shellcheck source=lib/local_down.sh
source "$SCRIPTS_DIR/lib/local_down.sh"

main() {
  local wish=up json=
  local argument
  for argument in "$@"; do
    case "$argument" in
      --json) json=yes ;;
      --down) wish=down ;;
      --purge) wish=purge ;;
      -h | --help) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0" && return ;;
      *) fail "unknown argument: $argument" "see: $0 --help" ;;
    esac
  done
  become_root "$0" "$@"
  local_layout
  refuse_services
  one_at_a_time
  trap 'at_exit $?' EXIT
  case "$wish" in
    up)
      local_up
      summary "$json"
      ;;
    down) local_down ;;
    purge) local_purge ;;
  esac
}

at_exit() {
  api_close
  (($1 == 0)) || note "not finished; logs are in $DATA_DIR/log, and it can be run again"
}

local_up() {
  step "Checking this machine"
  preflight_machine "$DATA_DIR"
  install_packages "${RUN_PACKAGES[@]}"
  prepare_data_dir
  ensure_engine "$DATA_DIR/docker"
  preflight_engine "$(engine_socket)"
  ensure_rust
  build_programs
  ensure_image
  start_coordinator
  start_node_agent
  ensure_first_instance
}

# What people need to know, on standard output; with --json one object as the last line.
summary() {
  local details url token ssh_line ssh_port ui_port
  details="$(api_get "/instances/$FIRST_INSTANCE")"
  url="$(jq -r .instance_url <<<"$details")"
  token="$(jq -r .token <<<"$details")"
  ssh_line="$(ssh_line_of "$details")"
  ssh_port="$(jq -r '.ssh_port // empty' <<<"$details")"
  ui_port="$UI_PORT"
  cat <<END

Crabshack runs. The first instance, $FIRST_INSTANCE, is ready:

  browser    $url
  token      $token
  SSH        $ssh_line
  API        $API_URL   (admin secret: $SECRET_FILE)

From another machine, first:
  ssh -L $ui_port:127.0.0.1:$ui_port -L $API_PORT:127.0.0.1:$API_PORT${ssh_port:+ -L $ssh_port:127.0.0.1:$ssh_port} $(invoking_user)@$(hostname)

Stop:  $0 --down     (keeps everything; run $0 to start again)
Away:  $0 --purge    (removes all data)
Logs:  $DATA_DIR/log/
END
  # Secrets go through the environment of jq, not through argv.
  [[ -z "$json" ]] || TOKEN="$token" URL="$url" jq -nc --arg api "$API_URL" --arg ui "$(ui_url)" --rawfile secret "$SECRET_FILE" \
    --arg name "$FIRST_INSTANCE" --arg ssh "$ssh_line" \
    '{api_url: $api, ui_url: $ui, admin_secret: ($secret | rtrimstr("\n")), instance: {name: $name, token: env.TOKEN, url: env.URL, ssh_command: $ssh}}'
}

main "$@"
