#!/usr/bin/env bash
# Tests of the scripts' decisions, and of processes by pid file. Changes nothing on the machine.
set -euo pipefail

# shellcheck source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
# shellcheck source=lib/testing.sh
source "$SCRIPTS_DIR/lib/testing.sh"
# shellcheck source=lib/local_down.sh
source "$SCRIPTS_DIR/lib/local_down.sh"

preflight__should_refuse_by_name() {
  expect platform '' "$(check_platform Linux x86_64)$(check_platform Linux aarch64)"
  expect platform_system '*Darwin*' "$(check_platform Darwin arm64)"
  expect platform_processor '*riscv64*' "$(check_platform Linux riscv64)"
  expect distribution '' "$(check_distribution 'debian 12')$(check_distribution 'ubuntu 22.04')$(check_distribution 'ubuntu 24.10')"
  expect distribution_old '*Debian 11*12 or later' "$(check_distribution 'debian 11')"
  expect distribution_old_ubuntu '*Ubuntu 20.04*' "$(check_distribution 'ubuntu 20.04')"
  expect distribution_other '*on fedora*nft (nftables)*' "$(PATH=/nonexistent check_distribution 'fedora 43')"
  expect selinux '*enforcing*' "$(check_selinux 1)"
  expect selinux_off '' "$(check_selinux 0)$(check_selinux '')"
  expect addresses '*IPv6 addresses only*' "$(check_addresses '' 2001:db8::1/64)"
  expect addresses_fine '' "$(check_addresses 192.0.2.1/24 2001:db8::1/64)$(check_addresses '' '')"
  expect memory '1024 MiB of memory*' "$(check_memory 1024)"
  expect memory_fine '' "$(check_memory 8000)"
  expect disk '100 MiB free for /nonexistent*' "$(check_disk /nonexistent 100)"
  expect disk_fine '' "$(check_disk /nonexistent 20000)"
}

preflight__should_refuse_engines_by_name() {
  local info='{"OSType":"linux","SecurityOptions":["name=seccomp,profile=default"]}'
  expect client_podman '*Podman*' "$(check_docker_client '' 'podman version 4.3.1')"
  expect client_remote '*tcp://192.0.2.9*' "$(check_docker_client tcp://192.0.2.9:2375 'Docker version 28')"
  expect client '' "$(check_docker_client unix:///run/docker.sock 'Docker version 28')"
  expect engine '' "$(check_engine '{"Version":"20.10.24+dfsg1","Components":[{"Name":"Engine"}]}' "$info")"
  expect engine_new '' "$(check_engine '{"Version":"28.2.2"}' "$info")"
  expect engine_old 'Docker 19.03.1*' "$(check_engine '{"Version":"19.03.1"}' "$info")"
  expect engine_podman '*Podman*' "$(check_engine '{"Version":"4.3.1","Components":[{"Name":"Podman Engine"}]}' "$info")"
  expect engine_rootless 'rootless*' "$(check_engine '{"Version":"28.2.2"}' '{"OSType":"linux","SecurityOptions":["name=rootless"]}')"
}

versions__should_compare_by_number() {
  expect newer yes "$(verdict version_at_least 1.95 1.100.0)"
  expect equal yes "$(verdict version_at_least 1.95 1.95)"
  expect older no "$(verdict version_at_least 1.95 1.94.9)"
}

live_restore__should_keep_other_settings() {
  local folder
  folder="$(mktemp -d)"
  DAEMON_CONFIG="$folder/docker/daemon.json"
  write_live_restore 2>/dev/null
  expect made '{"live-restore":true}' "$(jq -c . "$DAEMON_CONFIG")"
  printf '{"mtu": 1400, "live-restore": false}' >"$DAEMON_CONFIG"
  write_live_restore 2>/dev/null
  expect merged '{"mtu":1400,"live-restore":true}' "$(jq -c . "$DAEMON_CONFIG")"
  expect unchanged '' "$(write_live_restore 2>&1)"
  printf 'not json' >"$DAEMON_CONFIG"
  expect broken '*not valid JSON*' "$(write_live_restore 2>&1 || true)"
  expect broken_is_kept 'not json' "$(cat "$DAEMON_CONFIG")"
  rm -rf "$folder"
}

processes__should_be_signalled_only_when_they_are_ours() {
  local folder program
  folder="$(mktemp -d)"
  program="$folder/sleeper"
  cp "$(readlink -f "$(command -v sleep)")" "$program"
  start_process "$folder/pid" "$folder/log" "$program" 60
  expect running '[0-9]*' "$(running_pid "$folder/pid" "$program")"
  expect foreign no "$(verdict running_pid "$folder/pid" /usr/bin/other)"
  expect current no "$(verdict runs_replaced_program "$folder/pid")"
  cp "$program" "$program.new"
  mv "$program.new" "$program"
  expect replaced yes "$(verdict runs_replaced_program "$folder/pid")"
  stop_process "$folder/pid" "$program" 5
  expect stopped no "$(verdict test -e "$folder/pid")"
  echo $$ >"$folder/pid"
  stop_process "$folder/pid" "$program" 5
  expect another_process yes "$(verdict kill -0 $$)"
  expect ended_at_once '*ended at once*' "$(start_process "$folder/pid" "$folder/log" "$(readlink -f "$(command -v false)")" 2>&1 || true)"
  rm -rf "$folder"
}

service_address__should_be_the_first_of_the_pool() {
  expect first 10.201.0.1 "$(POOL=10.201.0.0/16 service_address)"
  expect first_of_small 10.9.8.65 "$(POOL=10.9.8.64/26 service_address)"
}

long_commands__should_show_their_log_when_they_fail() {
  local folder
  folder="$(mktemp -d)"
  expect failed '*| it broke*failed with exit code 3*' "$(run_logged "trying" "$folder/log" sh -c 'echo it broke; exit 3' 2>&1 || true)"
  expect fine '*done: trying*' "$(run_logged "trying" "$folder/log" true 2>&1)"
  rm -rf "$folder"
}

run_tests
