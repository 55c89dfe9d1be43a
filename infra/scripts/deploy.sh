#!/usr/bin/env bash
# Crabshack as services on this machine: installs, and upgrades what is installed.
#
#   sudo bash infra/scripts/deploy.sh <ADMIN_SECRET> [APP_DIR] [PORT] [OPTIONS]
#
# ADMIN_SECRET  at least 16 characters; `-` reads it from standard input; '' takes CRABSHACK_ADMIN_SECRET, or
#               what is installed. An argument stays in the shell's history: prefer `-` or the variable.
# APP_DIR       the clone to build; the one that holds this script
# PORT          of the API; 7700
#
#   --pool-size SIZE   of the pool that bounds volumes, like 200g; 60 % of the free space
#   --no-pool          volumes are plain folders, and storage_size is not enforced
#   --no-image         do not build the OpenClaw image
#   --binaries DIR     install the programs of this folder instead of building
#   --root DIR         only lay out the files below DIR
#   --uninstall        stop everything and remove programs and units; keep data and settings
#   --purge            the same, and remove data and settings
#
# Run it again at any time: it changes what is not right. After `git pull` it upgrades: both services are
# restarted one after the other, their sockets stay open, no instance is restarted, and a release that is
# not well is taken back. Settings: /etc/crabshack/*.env. Data: /var/lib/crabshack.
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
# shellcheck source=lib/services_down.sh
source "$SCRIPTS_DIR/lib/services_down.sh"

KEPT_VARIABLES+=,CRABSHACK_ADMIN_SECRET,CRABSHACK_MEMORY_OVERCOMMIT,CRABSHACK_READY_TIMEOUT,CRABSHACK_LOG_FORMAT
KEPT_VARIABLES+=,CRABSHACK_CA_BUNDLE,HTTP_PROXY,HTTPS_PROXY,NO_PROXY
KEPT_VARIABLES+=,CRABSHACK_ALLOWED_IMAGES,CRABSHACK_PULLS,CRABSHACK_IMAGE_GRACE
KEPT_VARIABLES+=,CRABSHACK_DELETE_GRACE,CRABSHACK_DATA_PLANE_ADDRESS,CRABSHACK_SSH_BIND,CRABSHACK_COORDINATOR

# What is asked for.
WISH=install
POOL_WISH=yes
POOL_SIZE=
IMAGE_WISH=yes
BINARIES=
OPTIONS=()
GIVEN=()

main() {
  parse "$@"
  hide_secret
  become_root "$0" "$@"
  SECRET="${CRABSHACK_ADMIN_SECRET:-}"
  unset CRABSHACK_ADMIN_SECRET
  REPOSITORY_DIR="$(readlink -m "${GIVEN[1]:-$REPOSITORY_DIR}")"
  [[ -z "${GIVEN[2]:-}" ]] || CRABSHACK_PORT="${GIVEN[2]}"
  POOL="$(setting node-agent CRABSHACK_POOL "${CRABSHACK_POOL:-10.201.0.0/16}")"
  "deploy_$WISH"
}

parse() {
  while (($# > 0)); do
    case "$1" in
      --uninstall | --purge) WISH="${1#--}" ;;
      --no-pool) POOL_WISH= ;;
      --no-image) IMAGE_WISH= ;;
      --pool-size | --binaries | --root)
        [[ -n "${2:-}" ]] || fail "$1 needs a value" "see: $0 --help"
        case "$1" in
          --pool-size) POOL_SIZE="$2" ;;
          --binaries) BINARIES="$(readlink -m "$2")" ;;
          --root) WISH=lay_out && INSTALL_ROOT="$(readlink -m "$2")" ;;
        esac
        OPTIONS+=("$1")
        shift
        ;;
      -h | --help) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0" && exit ;;
      --*) fail "unknown option: $1" "see: $0 --help" ;;
      *) GIVEN+=("$1") && shift && continue ;;
    esac
    OPTIONS+=("$1")
    shift
  done
  ((${#GIVEN[@]} <= 3)) || fail "too many arguments" "see: $0 --help"
  [[ -z "${GIVEN[2]:-}" || "${GIVEN[2]}" =~ ^[1-9][0-9]{0,4}$ ]] || fail "PORT must be a number"
}

# Everybody on the machine can read a program's arguments, but only root its environment: a secret that
# was given as an argument moves there before anything that takes time, by starting again.
hide_secret() {
  local secret="${GIVEN[0]:-}" wrong
  if [[ "$secret" == - ]]; then IFS= read -r secret || [[ -n "$secret" ]] || fail "standard input holds no secret"; fi
  [[ -n "$secret" ]] || return 0
  wrong="$(check_secret "$secret")"
  [[ -z "$wrong" ]] || fail "$wrong"
  export CRABSHACK_ADMIN_SECRET="$secret"
  exec "$BASH" "$0" "${OPTIONS[@]}" '' "${GIVEN[@]:1}"
}

deploy_install() {
  require_systemd
  one_at_a_time
  local_layout
  refuse_run_local
  step "Checking this machine"
  require_clone
  [[ -s "$ADMIN_SECRET" || -s "$STATE/admin-secret" ]] || lay_secret "$SECRET"
  preflight_machine "$STATE"
  install_packages "${RUN_PACKAGES[@]}" "${POOL_PACKAGES[@]}"
  ensure_engine "$STATE/docker"
  preflight_engine "$(engine_socket)"
  get_programs
  [[ -z "$IMAGE_WISH" ]] || ensure_image
  take_over_local
  lay_out_files
  systemd-sysusers
  systemctl daemon-reload
  [[ -z "$POOL_WISH" ]] || ensure_pool "$POOL_SIZE" "$RELEASE"
  API_URL="http://$(socket_address crabshack-api.socket)"
  bring_up coordinator "$RELEASE"
  invite_node
  bring_up node-agent "$RELEASE"
  rm -f "$JOIN_TOKEN"
  systemctl start crabshack.target
  prune_releases
  summary
}

deploy_lay_out() {
  require_clone
  get_programs
  lay_out_files
  local part
  for part in "${PARTS[@]}"; do switch_part "$part" "$RELEASE"; done
  step "Laid out below $INSTALL_ROOT; there, run systemd-sysusers, and enable the units"
}

deploy_uninstall() {
  require_systemd
  one_at_a_time
  uninstall_services
  step "Away. Data are kept in $STATE, settings in $SETTINGS; deploy.sh brings everything back"
}

deploy_purge() {
  require_systemd
  one_at_a_time
  uninstall_services
  purge_services
  step "Away, with all data. Docker and the images are kept"
}

require_clone() {
  [[ -f "$REPOSITORY_DIR/systemd/crabshack-api.service" ]] ||
    fail "$REPOSITORY_DIR is no clone of Crabshack" "give its folder as the second argument"
}

# Sets BINARIES to the folder of both programs.
get_programs() {
  local log
  [[ -z "$BINARIES" ]] || return 0
  ensure_rust
  step "Building the programs (the first time this takes some minutes)"
  log="$(mktemp /tmp/crabshack-build.XXXXXX)"
  BINARIES="$(build_release "$log")"
  rm -f "$log"
}

# Everything that both services read, but what belongs to a release: that is switched later, one by one.
lay_out_files() {
  lay_secret "$SECRET"
  ensure_settings coordinator CRABSHACK_PORT CRABSHACK_UI_PORT CRABSHACK_AGENT_LISTEN CRABSHACK_UI_ZONE CRABSHACK_PUBLIC_URL \
    CRABSHACK_MEMORY_OVERCOMMIT CRABSHACK_READY_TIMEOUT CRABSHACK_DELETE_GRACE CRABSHACK_DEBUG CRABSHACK_LOG_FORMAT \
    CRABSHACK_CA_BUNDLE HTTP_PROXY HTTPS_PROXY NO_PROXY NODE_SSH_HOST NODE_SSH_PORT NODE_SSH_USER
  # By name, as ensure_settings looks at them.
  # shellcheck disable=SC2034
  local CRABSHACK_DOCKER_SOCKET="${DOCKER_HOST:-}" CRABSHACK_COORDINATOR="${CRABSHACK_COORDINATOR:-${CRABSHACK_AGENT_LISTEN:-}}"
  ensure_settings node-agent CRABSHACK_COORDINATOR CRABSHACK_DATA_PLANE CRABSHACK_DATA_PLANE_ADDRESS CRABSHACK_HEALTH_LISTEN \
    CRABSHACK_POOL CRABSHACK_DNS_UPSTREAMS CRABSHACK_SSH_BIND CRABSHACK_DOCKER_SOCKET CRABSHACK_DEBUG CRABSHACK_LOG_FORMAT \
    CRABSHACK_ALLOWED_IMAGES CRABSHACK_PULLS CRABSHACK_IMAGE_GRACE
  RELEASE="$(stage_release "$BINARIES")"
  lay_common "$RELEASE"
}

summary() {
  cat <<END

Crabshack runs as services, and starts with this machine: release $RELEASE.

  API           $API_URL   (admin secret: $ADMIN_SECRET)
  browsers      http://$(setting coordinator CRABSHACK_UI_ZONE localhost):$(setting coordinator CRABSHACK_UI_PORT 3000)
  settings      $SETTINGS/api.env, $SETTINGS/node-agent.env   (after a change run this again)
  data          $STATE

Check:      bash $SCRIPTS_DIR/validate-cluster.sh
            crabshack-node-agent doctor
Services:   systemctl {status,restart} crabshack-api crabshack-node-agent   (no instance is restarted)
            systemctl {stop,start} crabshack.target                         (nor stopped)
Logs:       journalctl -u crabshack-api -u crabshack-node-agent -f
Upgrade:    git pull, then: sudo bash $0
Remove:     sudo bash $0 --uninstall   (keeps data), --purge   (keeps nothing)

First instance:
  read -rsp 'Admin secret: ' CRABSHACK_ADMIN_SECRET
  curl -N -X POST $API_URL/instances -H "Authorization: Bearer \$CRABSHACK_ADMIN_SECRET" \\
    -d '{"service_type": "openclaw", "mem_limit": "2G", "cpus": "1", "nearai_api_key": "...",
         "nearai_api_url": "https://cloud-api.near.ai/v1", "ssh_pubkey": "ssh-ed25519 AAAA..."}'
END
}

main "$@"
