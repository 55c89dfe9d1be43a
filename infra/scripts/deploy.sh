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
KEPT_VARIABLES+=,CRABSHACK_DELETE_GRACE,CRABSHACK_DATA_PLANE_ADDRESS,CRABSHACK_SSH_BIND,CRABSHACK_COORDINATOR

main() {
  local wish=install pool=yes pool_size='' image=yes binaries='' given=() options=()
  while (($# > 0)); do
    case "$1" in
      --uninstall) wish=uninstall ;;
      --purge) wish=purge ;;
      --no-pool) pool= ;;
      --no-image) image= ;;
      --pool-size | --binaries | --root)
        (($# > 1)) || fail "$1 needs a value" "see: $0 --help"
        case "$1" in
          --pool-size) pool_size="$2" ;;
          --binaries) binaries="$(readlink -m "$2")" ;;
          --root) wish=lay_out && INSTALL_ROOT="$(readlink -m "$2")" ;;
        esac
        options+=("$1")
        shift
        ;;
      -h | --help) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0" && return ;;
      --*) fail "unknown option: $1" "see: $0 --help" ;;
      *) given+=("$1") && shift && continue ;;
    esac
    options+=("$1")
    shift
  done
  ((${#given[@]} <= 3)) || fail "too many arguments: ${given[*]:3}" "see: $0 --help"
  hide_secret "${given[@]:0:1}"
  become_root "$0" "${options[@]}" -- '' "${given[@]:1}"
}

main "$@"
