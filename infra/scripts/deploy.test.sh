#!/usr/bin/env bash
# Tests of deploy.sh on a machine with a real systemd and a real Docker, made inside this one (lib/nest.sh):
# install, repeat, restart, upgrade, a release that is not well, uninstall, purge. Changes nothing here.
#
#   deploy.test.sh [PROGRAMS]    the folder of both programs; built when it is not given
set -euo pipefail

# shellcheck source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
# shellcheck source=lib/testing.sh
source "$SCRIPTS_DIR/lib/testing.sh"
# shellcheck source=lib/service_files.sh
source "$SCRIPTS_DIR/lib/service_files.sh"
# shellcheck source=lib/nest.sh
source "$SCRIPTS_DIR/lib/nest.sh"

SECRET=deploy-test-0123456789
INSTANCE=keeper
POOL_SIZE=700m

main() {
  become_root "$0" "$@"
  install_packages "${RUN_PACKAGES[@]}" "${POOL_PACKAGES[@]}" "${UNIT_PACKAGES[@]}"
  FOLDER="$(mktemp -d)"
  mkdir -m 755 "$FOLDER/machine"
  trap 'clean_up' EXIT
  prepare_programs "${1:-}"
  nest_start "$FOLDER/machine"
  step "A machine with systemd runs"
  install_it
  repeat_it
  make_instance
  restart_it
  upgrade_it
  survive_a_bad_release coordinator
  survive_a_bad_release node-agent
  repair_it
  uninstall_it
  flush_it
  purge_it
  take_over_it
  ((FAILED == 0)) || nest journalctl -u crabshack-api -u crabshack-node-agent -n 60 -o short-precise --no-pager
  printf '%s passed, %s failed\n' "$PASSED" "$FAILED"
  ((FAILED == 0))
}

clean_up() {
  [[ -z "${NEST_PID:-}" ]] || nest_stop
  rm -rf --one-file-system "$FOLDER"
}

# Four releases: as built; the same programs with other bytes; a node agent that ends at once; and a
# coordinator that does so after it changed the database for good, as a migration would.
prepare_programs() {
  local from="$1"
  ensure_rust
  if [[ -z "$from" ]]; then
    from="$(build_release "$FOLDER/build.log")"
  fi
  mkdir "$FOLDER"/{first,second,bad-agent,bad-coordinator}
  cp "$from/crabshack" "$from/crabshack-node-agent" "$FOLDER/first"
  cp "$from/crabshack" "$from/crabshack-node-agent" "$FOLDER/second"
  # What follows the program in its file changes nothing but its hash.
  echo second | tee -a "$FOLDER/second/crabshack" >>"$FOLDER/second/crabshack-node-agent"
  cp "$FOLDER/second"/* "$FOLDER/bad-agent"
  cp "$FOLDER/second"/* "$FOLDER/bad-coordinator"
  bad_program crabshack-node-agent ':' >"$FOLDER/bad-agent/crabshack-node-agent"
  # shellcheck disable=SC2016
  bad_program crabshack 'echo from the future >"$CRABSHACK_DATA_DIR/coordinator.redb"' >"$FOLDER/bad-coordinator/crabshack"
}

# bad_program NAME COMMAND
# shellcheck disable=SC2016
bad_program() { printf '#!/bin/sh\n[ "$1" = --version ] && exec echo %s 9.9.9\n%s\necho "this release is bad" >&2\nexit 1\n' "$@"; }

# The machine in the machine sees this one's root, but not what is mounted below it: it gets copies.
hand_over() {
  nest mkdir -p /programs /clone
  tar -C "$REPOSITORY_DIR" -cf - infra/scripts systemd | nest tar -C /clone -xf -
  tar -C "$FOLDER" -cf - first second bad-agent bad-coordinator | nest tar -C /programs -xf -
}

deploy() { nest bash /clone/infra/scripts/deploy.sh --no-image "$@" 2>&1; }

# The same, when it must not fail.
must_deploy() {
  local said
  said="$(deploy "$@")" || { printf '%s\n' "$said" >&2 && fail "deploy.sh $* failed"; }
  printf '%s\n' "$said"
}

validate() { nest bash /clone/infra/scripts/validate-cluster.sh 2>&1; }

main_pid() { nest systemctl show -p MainPID --value "$1"; }

pids() { echo "$(main_pid crabshack-api) $(main_pid crabshack-node-agent)"; }

install_it() {
  local said
  step "Installing"
  hand_over
  said="$(must_deploy --binaries /programs/first --pool-size "$POOL_SIZE" "$SECRET")"
  expect summary '*Crabshack runs as services*' "$said"
  said="$(validate || true)"
  expect validate '*, 0 failed' "$said"
  expect pool '*ok*pool *free*' "$said"
  expect bounded no "$(verdict grep -q 'plain folders' <<<"$said")"
  expect user crabshack "$(nest ps -o user= -p "$(main_pid crabshack-api)")"
  expect token_is_gone no "$(verdict nest test -e /etc/crabshack/join-token)"
  expect wrong_secret 401 "$(nest curl -s -o /dev/null -w '%{http_code}' -H 'Authorization: Bearer wrong-0123456789' http://127.0.0.1:7700/instances)"
}

repeat_it() {
  local before said
  step "Again"
  before="$(pids)"
  said="$(must_deploy --binaries /programs/first)"
  expect nothing_restarted "$before" "$(pids)"
  expect run_local_keeps_off '*installed as services*' "$(nest bash /clone/infra/scripts/run-local.sh --purge 2>&1 || true)"
}

api() { nest curl -sS --max-time 60 -H "Authorization: Bearer $SECRET" "$@"; }

# An instance of the stub agent, when its image was built by the tests.
make_instance() {
  local tar
  tar="$(target_folder)/stub-agent.tar"
  CONTAINER=
  [[ -s "$tar" ]] || { note "left out: no instance, since $tar was not built" && return; }
  step "An instance"
  nest docker import -c 'USER 1000:1000' -c 'ENV HOME=/home/agent' \
    -c 'ENTRYPOINT ["/usr/local/bin/crabshack-stub-agent"]' - crabshack/stub-agent:1 <"$tar" >/dev/null
  expect created '*event: ready*' "$(api -N -X POST http://127.0.0.1:7700/instances -H 'Content-Type: application/json' -d '{
    "name": "'"$INSTANCE"'", "service_type": "openclaw", "image": "crabshack/stub-agent:1", "mem_limit": "1g", "cpus": "1",
    "storage_size": "128m", "nearai_api_key": "key-of-a-test", "nearai_api_url": "https://example.com/v1",
    "ssh_pubkey": "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJv3sCUYpPSFZ1aTNT5YbyDtqnSVdWQ5JIwFzWn+fnPH test"}')"
  CONTAINER="$(running_container)"
}

# Id and start of the instance's container.
running_container() {
  local ids
  mapfile -t ids < <(nest docker ps -q --filter label=crabshack.instance)
  ((${#ids[@]} == 0)) || nest docker inspect -f '{{.Id}} {{.State.StartedAt}}' "${ids[@]}"
}

# knock SECONDS: connects to all five sockets again and again, and asks for whole answers beside; prints
# how much of it was refused. What waits in a socket is answered by whoever comes next.
knock() {
  # shellcheck disable=SC2016
  nest bash -c '
    end=$((SECONDS + $1))
    ask() {
      local refused=0 made=0
      while ((SECONDS < end)); do
        made=$((made + 1))
        [[ "$(curl -s --max-time 60 -o /dev/null -w "%{http_code}" "http://127.0.0.1:$1/health")" == 200 ]] || refused=$((refused + 1))
        sleep 0.05
      done
      echo "$refused refused of $made answers of $1"
    }
    connect() {
      local refused=0 made=0 port
      while ((SECONDS < end)); do
        for port in 7700 3000 7701 7702 7703; do
          made=$((made + 1))
          (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || refused=$((refused + 1))
        done
        sleep 0.05
      done
      echo "$refused refused of $made connections"
    }
    ask 7700 & connect & wait' knock "$1"
}

expect_no_refusal() {
  note "$(paste -sd , "$FOLDER/knocks")"
  expect counts 2 "$(grep -cE '^[0-9]+ refused of [1-9]' "$FOLDER/knocks")"
  expect no_refusal 2 "$(grep -c '^0 refused' "$FOLDER/knocks")"
}

restart_it() {
  local before
  step "Restarting under knocks"
  before="$(pids)"
  knock 12 >"$FOLDER/knocks" &
  local knocking=$!
  nest systemctl restart crabshack-api
  nest systemctl restart crabshack-node-agent
  nest systemctl restart crabshack-api crabshack-node-agent
  wait "$knocking"
  expect_no_refusal
  expect restarted no "$(verdict test "$before" == "$(pids)")"
  expect container "$CONTAINER" "$(running_container)"
  nest kill -KILL "$(main_pid crabshack-node-agent)"
  wait_until 20 nest curl -sf --max-time 2 http://127.0.0.1:7703/ready || true
  expect killed '*ready*' "$(nest curl -s --max-time 5 http://127.0.0.1:7703/ready)"
  expect container_after_kill "$CONTAINER" "$(running_container)"
}

upgrade_it() {
  local before said
  step "Upgrading under knocks"
  before="$(pids)"
  knock 15 >"$FOLDER/knocks" &
  local knocking=$!
  said="$(must_deploy --binaries /programs/second)"
  wait "$knocking"
  expect_no_refusal
  expect upgraded no "$(verdict test "$before" == "$(pids)")"
  expect container "$CONTAINER" "$(running_container)"
  expect copy 1 "$(nest find /var/lib/crabshack/coordinator -name 'coordinator.redb.of.*' | wc -l)"
  expect validate '*, 0 failed' "$(validate || true)"
}

# survive_a_bad_release PART
survive_a_bad_release() {
  local part="$1" release said code=0
  step "A release whose $part is not well"
  release="$(nest readlink "$RELEASES/$part")"
  said="$(deploy --binaries "/programs/bad-${part#node-}")" || code=$?
  expect exit_code 1 "$code"
  expect said "*this release is bad*goes back to $release*is not well*runs $release again*" "$said"
  expect back "$release" "$(nest readlink "$RELEASES/$part")"
  expect container "$CONTAINER" "$(running_container)"
  expect validate '*, 0 failed' "$(validate || true)"
}

repair_it() {
  local said
  step "A good release after bad ones"
  said="$(must_deploy --binaries /programs/second)"
  expect releases 2 "$(nest find "$RELEASES" -mindepth 1 -maxdepth 1 -type d | wc -l)"
  [[ -z "$CONTAINER" ]] || expect instance_runs yes "$(verdict instance_runs)"
}

nothing_runs() { [[ "$(pids)" == "0 0" ]]; }

uninstall_it() {
  local said
  step "Stopping everything, with connections waiting"
  knock 3 >/dev/null &
  nest systemctl stop crabshack.target
  wait $!
  wait_until 25 nothing_runs || true
  expect nothing_runs '0 0' "$(pids)"
  nest systemctl start crabshack.target
  step "Uninstalling"
  said="$(must_deploy --uninstall)"
  expect units '' "$(nest systemctl list-units --all --no-legend 'crabshack*')"
  expect containers '' "$(nest docker ps -q --filter label=crabshack.instance)"
  expect data_stay yes "$(verdict nest test -s /var/lib/crabshack/coordinator/coordinator.redb)"
  expect settings_stay yes "$(verdict nest test -s /etc/crabshack/admin-secret)"
  said="$(must_deploy --binaries /programs/second)"
  expect no_new_secret '*Crabshack runs as services*' "$said"
  [[ -z "$CONTAINER" ]] || {
    wait_until 60 instance_runs || true
    expect instance_is_back yes "$(verdict instance_runs)"
  }
  expect validate '*, 0 failed' "$(validate || true)"
}

# A foreign flush of all tables, as starting nftables.service does it.
flush_it() {
  step "Flushing the ruleset"
  nest systemctl restart nftables.service
  wait_until 20 nest nft list table inet crabshack || true
  expect table_is_back yes "$(verdict nest nft list table inet crabshack)"
  expect guard_stayed 2 "$(nest ip -4 rule show | grep -cE '^(99|100):')"
}

instance_runs() { [[ "$(api "http://127.0.0.1:7700/instances/$INSTANCE" | jq -r .status)" == running ]]; }

purge_it() {
  local said
  step "Purging"
  said="$(must_deploy --purge)"
  expect left '' "$(nest find /etc/crabshack /usr/local/lib/crabshack /usr/local/bin /etc/systemd/system /var/lib/crabshack \
    -name '*crabshack*' -not -path /var/lib/crabshack 2>/dev/null)"
  expect data '' "$(nest ls -A /var/lib/crabshack)"
  expect containers '' "$(nest docker ps -aq --filter label=crabshack.instance)"
  expect networks '' "$(nest docker network ls -q --filter label=crabshack.instance)"
  expect table no "$(verdict nest nft list table inet crabshack)"
  expect user no "$(verdict nest getent passwd crabshack)"
  expect loop_devices '' "$(losetup --noheadings --output BACK-FILE | grep crabshack/node-agent/pool || true)"
}

# What run-local.sh leaves behind: its data go on as data of the services.
take_over_it() {
  local said
  step "Taking over from run-local.sh"
  # shellcheck disable=SC2016
  nest bash -c 'mkdir -p /var/lib/crabshack/{bin,run,coordinator} && cd /var/lib/crabshack && touch .crabshack-local coordinator/mine
    echo "$1" >admin-secret' take_over "$SECRET"
  said="$(must_deploy --binaries /programs/first --no-pool)"
  expect said '*Taking over the data*admin secret is taken over*' "$said"
  expect secret_opens '*"instances"*' "$(api http://127.0.0.1:7700/instances)"
  expect owner crabshack "$(nest stat -c %U /var/lib/crabshack/coordinator/mine)"
  expect only_ours 'coordinator node-agent' "$(nest ls /var/lib/crabshack | paste -sd ' ')"
  expect validate '*, 0 failed' "$(validate || true)"
}

main "$@"
