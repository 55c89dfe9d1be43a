#!/usr/bin/env bash
# Tests of the units and of what deploy.sh lays out. Needs the tools of systemd, not systemd itself, and
# changes nothing on the machine.
set -euo pipefail

# shellcheck source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
# shellcheck source=lib/testing.sh
source "$SCRIPTS_DIR/lib/testing.sh"
# shellcheck source=lib/service_files.sh
source "$SCRIPTS_DIR/lib/service_files.sh"

# Of `systemd-analyze security`, which counts from 0 (closed) to 10.
API_EXPOSURE_MAXIMUM=1.5
NODE_AGENT_EXPOSURE_MAXIMUM=4.0

# Programs that answer `--version`, and a root with an installation of them.
make_root() {
  FOLDER="$(mktemp -d)"
  mkdir "$FOLDER/programs"
  printf '#!/bin/sh\necho crabshack %s\n' "${1:-1.2.3}" >"$FOLDER/programs/crabshack"
  printf '#!/bin/sh\necho crabshack-node-agent 1.2.3\n' >"$FOLDER/programs/crabshack-node-agent"
  chmod 755 "$FOLDER/programs"/*
  INSTALL_ROOT="$FOLDER/root"
}

# deploy ARGUMENTS...: lays out below the root.
deploy() { env -u DOCKER_HOST "$SCRIPTS_DIR/deploy.sh" --root "$INSTALL_ROOT" --binaries "$FOLDER/programs" "$@" 2>&1; }

# A systemd may look only at what is ours and at its own.
verify() { systemd-analyze verify --root="$INSTALL_ROOT" --man=no "$@" 2>&1; }

units__should_be_accepted_by_systemd() {
  local unit
  make_root
  expect deploy '*Laid out*' "$(deploy 0123456789abcdef)"
  # Units that ours name, from this machine where it has them.
  mkdir -p "$INSTALL_ROOT/usr/lib/systemd/system" "$INSTALL_ROOT/bin" "$INSTALL_ROOT/usr/sbin"
  cp /lib/systemd/system/*.target /lib/systemd/system/*.slice /lib/systemd/system/*.mount "$INSTALL_ROOT/usr/lib/systemd/system/" 2>/dev/null || true
  for unit in docker network-pre nftables; do
    printf '[Unit]\nDescription=%s\n[Service]\nType=oneshot\nExecStart=/bin/true\nExecReload=/bin/true\n' "$unit" >"$INSTALL_ROOT/usr/lib/systemd/system/$unit.service"
  done
  printf '#!/bin/sh\n' | tee "$INSTALL_ROOT/bin/true" >"$INSTALL_ROOT/bin/systemctl"
  chmod 755 "$INSTALL_ROOT/bin"/*
  for unit in "$INSTALL_ROOT$UNITS"/{crabshack*,var-lib*} nftables.service; do
    unit="$(basename "$unit")"
    [[ -d "$INSTALL_ROOT$UNITS/$unit" ]] || expect "verify $unit" '' "$(verify "$unit")"
  done
  sed -i 's/^KillMode=.*/KillMode=everything/' "$INSTALL_ROOT$UNITS/crabshack-api.service"
  expect verify_complains '*kill mode*' "$(verify crabshack-api.service)"
  rm -rf "$FOLDER"
}

units__should_stay_closed() {
  expect api yes "$(exposure crabshack-api.service "$API_EXPOSURE_MAXIMUM")"
  expect node_agent yes "$(exposure crabshack-node-agent.service "$NODE_AGENT_EXPOSURE_MAXIMUM")"
}

# exposure UNIT MAXIMUM: `yes`, or what it is.
exposure() {
  local seen
  seen="$(systemd-analyze security --offline=true "$REPOSITORY_DIR/systemd/$1" 2>&1 | sed -n 's/.*Overall exposure level for [^:]*: \([0-9.]*\).*/\1/p')"
  if [[ -n "$seen" ]] && awk -v seen="$seen" -v most="$2" 'BEGIN {exit !(seen <= most)}'; then echo yes; else echo "${seen:-nothing}"; fi
}

# The names are what both daemons ask for; a socket of another name would be bound a second time.
sockets__should_carry_their_names() {
  local pair
  for pair in api:api ui:ui agents:agents node-agent:data-plane node-agent-health:health; do
    expect "$pair" "FileDescriptorName=${pair#*:}" "$(grep ^FileDescriptorName "$REPOSITORY_DIR/systemd/crabshack-${pair%%:*}.socket")"
  done
}

installation__should_be_the_same_when_repeated_and_keep_edits() {
  local before release
  make_root
  deploy 0123456789abcdef >/dev/null
  release="$(part_release coordinator)"
  expect release '1.2.3-????????????' "$release"
  expect program 'crabshack 1.2.3' "$("$INSTALL_ROOT$RELEASES/$release/crabshack")"
  expect link "$RELEASES/coordinator/crabshack" "$(readlink "$INSTALL_ROOT/usr/local/bin/crabshack")"
  expect secret 600:0123456789abcdef "$(stat -c %a "$INSTALL_ROOT$ADMIN_SECRET"):$(cat "$INSTALL_ROOT$ADMIN_SECRET")"
  expect settings_mode 600 "$(stat -c %a "$INSTALL_ROOT$SETTINGS/api.env")"
  printf '# mine\nNODE_SSH_USER=admin\n' >>"$INSTALL_ROOT$SETTINGS/api.env"
  before="$(snapshot)"
  deploy >/dev/null
  expect repeated "$before" "$(snapshot)"
  CRABSHACK_UI_PORT=3100 deploy '' "$REPOSITORY_DIR" 7800 >/dev/null
  expect edits_stay '*# mine*NODE_SSH_USER=admin*CRABSHACK_PORT="7800"*CRABSHACK_UI_PORT="3100"*' "$(cat "$INSTALL_ROOT$SETTINGS/api.env")"
  expect moved_api '*ListenStream=127.0.0.1:7800' "$(cat "$INSTALL_ROOT$UNITS/crabshack-api.socket.d/address.conf")"
  expect moved_ui '*ListenStream=127.0.0.1:3100' "$(cat "$INSTALL_ROOT$UNITS/crabshack-ui.socket.d/address.conf")"
  expect not_moved no "$(verdict test -e "$INSTALL_ROOT$UNITS/crabshack-agents.socket.d")"
  deploy '' '' 7700 >/dev/null
  expect moved_back no "$(verdict test -e "$INSTALL_ROOT$UNITS/crabshack-api.socket.d/address.conf")"
  rm -rf "$FOLDER"
}

# Of every file its time, mode and content.
snapshot() { (cd "$INSTALL_ROOT" && find . -not -type d -printf '%p %m %T@ %l\n' | sort && find . -type f -print0 | sort -z | xargs -0 sha256sum) | sha256sum; }

secret__should_come_from_anywhere_but_never_stay_in_arguments() {
  local arguments
  make_root
  expect none '*no admin secret*' "$(deploy || true)"
  expect short '*at least 16*' "$(deploy short || true)"
  echo from-standard-input | deploy - >/dev/null
  expect standard_input from-standard-input "$(cat "$INSTALL_ROOT$ADMIN_SECRET")"
  CRABSHACK_ADMIN_SECRET=from-the-environment deploy >/dev/null
  expect environment from-the-environment "$(cat "$INSTALL_ROOT$ADMIN_SECRET")"
  # The program is asked for its version when the secret is long known: it tells what it and its parents see.
  # shellcheck disable=SC2016
  printf '#!/bin/sh\nfor up in self $PPID; do tr "\\0" " " </proc/$up/cmdline; done >"%s/seen"; env >>"%s/seen"; echo crabshack 1.2.3\n' \
    "$FOLDER" "$FOLDER" >"$FOLDER/programs/crabshack"
  deploy from-the-arguments >/dev/null
  expect argument from-the-arguments "$(cat "$INSTALL_ROOT$ADMIN_SECRET")"
  arguments="$(cat "$FOLDER/seen")"
  expect seen '*deploy.sh*' "$arguments"
  expect hidden no "$(verdict grep -q from-the-arguments <<<"$arguments")"
  rm -rf "$FOLDER"
}

releases__should_be_kept_for_the_way_back_and_no_longer() {
  local first second third
  make_root 1.0.0
  deploy 0123456789abcdef >/dev/null
  first="$(part_release coordinator)"
  printf '#!/bin/sh\necho crabshack 1.1.0\n' >"$FOLDER/programs/crabshack"
  second="$(stage_release "$FOLDER/programs")"
  switch_part coordinator "$second"
  expect one_part_at_a_time "$second $first" "$(part_release coordinator) $(part_release node-agent)"
  switch_part node-agent "$second"
  printf '#!/bin/sh\necho crabshack 1.2.0\n' >"$FOLDER/programs/crabshack"
  third="$(stage_release "$FOLDER/programs")"
  switch_part coordinator "$third"
  switch_part node-agent "$third"
  touch -d '1 hour ago' "$INSTALL_ROOT$RELEASES/$first"
  prune_releases
  expect first no "$(verdict test -e "$INSTALL_ROOT$RELEASES/$first")"
  expect second yes "$(verdict test -e "$INSTALL_ROOT$RELEASES/$second")"
  expect third yes "$(verdict test -e "$INSTALL_ROOT$RELEASES/$third")"
  remove_service_files
  expect removed "$INSTALL_ROOT$SETTINGS/admin-secret $INSTALL_ROOT$SETTINGS/api.env $INSTALL_ROOT$SETTINGS/node-agent.env " \
    "$(find "$INSTALL_ROOT" -not -type d | sort | tr '\n' ' ')"
  rm -rf "$FOLDER"
}

copies__should_be_made_before_another_release_starts() {
  local keep="$REPOSITORY_DIR/systemd/keep-copy.sh"
  FOLDER="$(mktemp -d)"
  start_of() {
    ln -sfn "$1" "$FOLDER/link"
    "$keep" "$FOLDER/db" "$FOLDER/link"
    echo "written by $1" >"$FOLDER/db"
  }
  start_of a
  expect first a "$(cat "$FOLDER/db.release")"
  start_of b
  expect another 'written by a' "$(cat "$FOLDER/db.of.a")"
  start_of b
  expect again 'written by a' "$(cat "$FOLDER/db.of.a")"
  start_of a
  expect back 'written by a|written by b' "$(cat "$FOLDER/db.of.a")|$(cat "$FOLDER/db.of.b")"
  start_of c
  start_of d
  expect bounded 2 "$(find "$FOLDER" -name 'db.of.*' | wc -l)"
  rm -rf "$FOLDER"
}

install_packages "${UNIT_PACKAGES[@]}"
run_tests
