#!/usr/bin/env bash
# Installs Sysbox, the Docker runtime that instances of the type `ironclaw-dind` need on their node.
#
#   sysbox.sh                   from this machine's own sources of packages
#   sysbox.sh --package FILE    from a package that was fetched by hand
#
# Debian and Ubuntu have no such package; its makers publish one per release. Its installation registers the
# runtime with Docker. A node tells by itself what its Docker offers: nothing is to be set.
set -euo pipefail

# shellcheck source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

RUNTIME=sysbox-runc
PACKAGE=sysbox-ce

main() {
  local package="$PACKAGE" socket
  case "${1:-}" in
    '') ;;
    --package)
      package="$(readlink -f "${2:?--package needs a file}")"
      [[ -f "$package" ]] || fail "there is no file $package"
      ;;
    *) fail "unknown argument: $1" "see the head of $0" ;;
  esac
  become_root "$0" "$@"
  socket="$(engine_socket)"
  if offers_runtime "$socket"; then
    note "Docker offers $RUNTIME already"
    return
  fi
  command -v apt-get >/dev/null || fail "Sysbox is installed by itself on Debian and Ubuntu only" \
    "install it as its makers say, then restart Docker"
  [[ -d /run/systemd/system ]] || fail "Sysbox has services of its own, which need systemd"
  if [[ "$package" == "$PACKAGE" ]] && ! apt-cache show "$PACKAGE" >/dev/null 2>&1; then
    fail "this machine's sources have no package $PACKAGE" \
      "fetch it for this architecture from its makers' releases (github.com/nestybox/sysbox)" \
      "then: $0 --package FILE"
  fi
  step "Installing Sysbox"
  run_logged "apt-get install" /var/log/crabshack-sysbox.log \
    env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$package"
  wait_until 60 offers_runtime "$socket" ||
    fail "Docker does not offer $RUNTIME" "restart it (systemctl restart docker) and look at: systemctl status sysbox"
  note "Docker offers $RUNTIME: this node takes instances of the type ironclaw-dind"
}

offers_runtime() { engine_get "$1" /info 2>/dev/null | jq -e --arg name "$RUNTIME" '.Runtimes | has($name)' >/dev/null; }

main "$@"
