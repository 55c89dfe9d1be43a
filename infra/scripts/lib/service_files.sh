# shellcheck shell=bash
# The files of an installation as services. Everything is written below INSTALL_ROOT, which is empty but
# for images of machines and tests; nothing here talks to systemd. Writing the same again changes nothing,
# not even times: a file that is newer than a service tells that the service must be restarted.

INSTALL_ROOT="${INSTALL_ROOT:-}"
RELEASES=/usr/local/lib/crabshack
SETTINGS=/etc/crabshack
UNITS=/etc/systemd/system
STATE=/var/lib/crabshack
ADMIN_SECRET="$SETTINGS/admin-secret"
# shellcheck disable=SC2034
JOIN_TOKEN="$SETTINGS/join-token"
POOL_UNIT='var-lib-crabshack-node\x2dagent-instances.mount'

# A part is what is switched to another release as a whole: `coordinator` or `node-agent`.
PARTS=(coordinator node-agent)

part_service() { case "$1" in coordinator) echo crabshack-api.service ;; node-agent) echo crabshack-node-agent.service ;; esac; }

part_sockets() {
  case "$1" in
    coordinator) printf '%s\n' crabshack-api.socket crabshack-ui.socket crabshack-agents.socket ;;
    node-agent) printf '%s\n' crabshack-node-agent.socket crabshack-node-agent-health.socket ;;
  esac
}

part_program() { case "$1" in coordinator) echo crabshack ;; node-agent) echo crabshack-node-agent ;; esac; }

part_settings() { case "$1" in coordinator) echo "$SETTINGS/api.env" ;; node-agent) echo "$SETTINGS/node-agent.env" ;; esac; }

part_database() { case "$1" in coordinator) echo "$STATE/coordinator/coordinator.redb" ;; node-agent) echo "$STATE/node-agent/ledger.redb" ;; esac; }

# lay FILE MODE: writes standard input there unless it is there already; by renaming.
lay() {
  local file="$INSTALL_ROOT$1" mode="$2"
  mkdir -p "$(dirname "$file")"
  (umask 077 && cat >"$file.new")
  chmod "$mode" "$file.new"
  if cmp -s "$file.new" "$file" && [[ "$(stat -c %a "$file")" == "$mode" ]]; then
    rm "$file.new"
  else
    mv "$file.new" "$file"
  fi
}

# point LINK TARGET: the link names the target from now on, with no moment in between.
point() {
  [[ "$(readlink "$INSTALL_ROOT$1" || true)" != "$2" ]] || return 0
  mkdir -p "$(dirname "$INSTALL_ROOT$1")"
  ln -sfn "$2" "$INSTALL_ROOT$1.new"
  mv -T "$INSTALL_ROOT$1.new" "$INSTALL_ROOT$1"
}

# stage_release PROGRAMS: copies both programs and their units into a folder named after what is in it,
# and prints its name.
stage_release() {
  local programs="$1" units="$REPOSITORY_DIR/systemd" version hash name staged
  version="$("$programs/crabshack" --version | awk '{print $2}')"
  hash="$(cd "$units" && find . -type f -print0 | sort -z | xargs -0 cat "$programs/crabshack" "$programs/crabshack-node-agent" | sha256sum)"
  name="$version-${hash:0:12}"
  staged="$INSTALL_ROOT$RELEASES/$name"
  if [[ ! -d "$staged" ]]; then
    install -d -m 755 "$INSTALL_ROOT$RELEASES"
    rm -rf "$staged.new"
    install -d -m 755 "$staged.new"
    install -m 755 "$programs/crabshack" "$programs/crabshack-node-agent" "$staged.new"
    cp -R "$units" "$staged.new/systemd"
    chmod -R u=rwX,go=rX "$staged.new/systemd"
    chown -R 0:0 "$staged.new"
    sync -f "$staged.new"
    mv "$staged.new" "$staged"
  fi
  touch "$staged"
  printf '%s\n' "$name"
}

# part_release PART: the release it is switched to; nothing before the first installation.
part_release() { readlink "$INSTALL_ROOT$RELEASES/$1" || true; }

# switch_part PART RELEASE: units and link. The service goes on with what it has until it is restarted.
switch_part() {
  local part="$1" release="$2" unit from
  from="$INSTALL_ROOT$RELEASES/$release/systemd"
  for unit in "$(part_service "$part")" $(part_sockets "$part"); do
    lay "$UNITS/$unit" 644 <"$from/$unit"
  done
  if waits_longer; then lay "$UNITS/$(part_service "$part").d/back-off.conf" 644 <"$from/back-off.conf"; fi
  lay_addresses "$part"
  point "$RELEASES/$part" "$release"
  point "/usr/local/bin/$(part_program "$part")" "$RELEASES/$part/$(part_program "$part")"
}

# True for a systemd that knows RestartSteps=.
waits_longer() { version_at_least 254 "$(systemctl --version | awk 'NR == 1 {print $2}')"; }

# What both parts share.
lay_common() {
  local from="$INSTALL_ROOT$RELEASES/$1/systemd"
  lay "$UNITS/crabshack.slice" 644 <"$from/crabshack.slice"
  lay "$UNITS/crabshack.target" 644 <"$from/crabshack.target"
  lay "$UNITS/$POOL_UNIT" 644 <"$from/$POOL_UNIT"
  lay "$UNITS/nftables.service.d/crabshack.conf" 644 <"$from/nftables.service.d/crabshack.conf"
  lay /usr/local/lib/sysusers.d/crabshack.conf 644 <"$from/crabshack.sysusers"
  lay "$RELEASES/keep-copy.sh" 755 <"$from/keep-copy.sh"
}

# setting PART NAME DEFAULT: a value of the settings file.
setting() {
  local file value
  file="$INSTALL_ROOT$(part_settings "$1")"
  value="$(sed -n "s/^[[:space:]]*$2=//p" "$file" 2>/dev/null | tail -n 1)"
  value="${value%\"}"
  value="${value#\"}"
  printf '%s\n' "${value:-$3}"
}

# put_setting PART NAME VALUE: replaces or adds one line; everything else of the administrator stays.
put_setting() {
  local file
  [[ "$3" != *[$'\n"\\']* ]] || fail "$2 must not hold quotes, backslashes or line breaks"
  file="$(part_settings "$1")"
  SETTING_NAME="$2" SETTING_VALUE="$3" awk '
    index($0, ENVIRON["SETTING_NAME"] "=") == 1 { if (!done++) print ENVIRON["SETTING_NAME"] "=\"" ENVIRON["SETTING_VALUE"] "\""; next }
    { print }
    END { if (!done) print ENVIRON["SETTING_NAME"] "=\"" ENVIRON["SETTING_VALUE"] "\"" }' \
    "$INSTALL_ROOT$file" | lay "$file" 600
}

# ensure_settings PART NAMES...: makes the file; variables that this script was started with go into it.
ensure_settings() {
  local part="$1" file name
  shift
  file="$(part_settings "$part")"
  install -d -m 755 "$INSTALL_ROOT$SETTINGS"
  [[ -e "$INSTALL_ROOT$file" ]] || lay "$file" 600 <<END
# Settings of $(part_service "$part"): NAME=VALUE, one a line; README.md says which there are.
# After a change run deploy.sh again: it keeps what is written here.
END
  chmod 600 "$INSTALL_ROOT$file"
  for name in "$@"; do
    [[ -z "${!name:-}" || "$(setting "$part" "$name" '')" == "${!name}" ]] || put_setting "$part" "$name" "${!name}"
  done
}

# socket_address SOCKET: where the settings want it to listen.
socket_address() {
  case "$1" in
    crabshack-api.socket) echo "127.0.0.1:$(setting coordinator CRABSHACK_PORT 7700)" ;;
    crabshack-ui.socket) echo "127.0.0.1:$(setting coordinator CRABSHACK_UI_PORT 3000)" ;;
    crabshack-agents.socket) setting coordinator CRABSHACK_AGENT_LISTEN 127.0.0.1:7701 ;;
    crabshack-node-agent.socket) setting node-agent CRABSHACK_DATA_PLANE 127.0.0.1:7702 ;;
    crabshack-node-agent-health.socket) setting node-agent CRABSHACK_HEALTH_LISTEN 127.0.0.1:7703 ;;
  esac
}

# Sockets that the settings want elsewhere than their unit says.
lay_addresses() {
  local socket address
  for socket in $(part_sockets "$1"); do
    address="$(socket_address "$socket")"
    if grep -qxF "ListenStream=$address" "$INSTALL_ROOT$UNITS/$socket"; then
      rm -f "$INSTALL_ROOT$UNITS/$socket.d/address.conf"
    else
      printf '[Socket]\nListenStream=\nListenStream=%s\n' "$address" | lay "$UNITS/$socket.d/address.conf" 644
    fi
  done
}

# lay_secret SECRET: an empty one keeps what is there.
lay_secret() {
  if [[ -n "$1" ]]; then
    printf '%s\n' "$1" | lay "$ADMIN_SECRET" 600
  elif [[ ! -s "$INSTALL_ROOT$ADMIN_SECRET" ]]; then
    fail "no admin secret" "give it as the first argument, in CRABSHACK_ADMIN_SECRET, or on standard input with \`-\`"
  fi
}

# check_secret SECRET: why it cannot be used.
check_secret() {
  [[ "$1" =~ ^[[:graph:]]{16,}$ ]] || echo "the admin secret must be at least 16 printable characters without spaces, for example: openssl rand -hex 32"
}

# Removes releases that nothing points to, but for the newest of them.
prune_releases() {
  local used kept=0 release
  used=" $(part_release coordinator) $(part_release node-agent) "
  for release in $(cd "$INSTALL_ROOT$RELEASES" && ls -td -- *-????????????/ 2>/dev/null); do
    release="${release%/}"
    [[ "$used" != *" $release "* ]] || continue
    ((kept++ == 0)) || rm -rf "$INSTALL_ROOT${RELEASES:?}/$release" "$INSTALL_ROOT$RELEASES/$release.new"
  done
}

# Everything that is laid out by the functions above, but settings and secret.
remove_service_files() {
  local part unit
  for part in "${PARTS[@]}"; do
    for unit in "$(part_service "$part")" $(part_sockets "$part"); do
      rm -rf "$INSTALL_ROOT${UNITS:?}/$unit" "$INSTALL_ROOT$UNITS/$unit.d"
    done
    rm -f "$INSTALL_ROOT/usr/local/bin/$(part_program "$part")"
  done
  rm -f "$INSTALL_ROOT$UNITS/crabshack.slice" "$INSTALL_ROOT$UNITS/crabshack.target" "$INSTALL_ROOT$UNITS/$POOL_UNIT" "$INSTALL_ROOT$UNITS/nftables.service.d/crabshack.conf"
  rmdir --ignore-fail-on-non-empty "$INSTALL_ROOT$UNITS/nftables.service.d" 2>/dev/null || true
  rm -f "$INSTALL_ROOT/usr/local/lib/sysusers.d/crabshack.conf"
  rm -rf "$INSTALL_ROOT$RELEASES"
}
