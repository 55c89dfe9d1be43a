# shellcheck shell=bash
# Checks of a whole installation. Each prints what it saw and returns 0 (right), 1 (wrong) or 2 (worth a look).

# Below these a disk stops creates; see the node agent's own watermarks.
FREE_PERCENT_MINIMUM=10
FREE_MIB_MINIMUM=5120
CERTIFICATE_DAYS_MINIMUM=20

# check NAME COMMAND...: one line of the table.
check() {
  local name="$1" seen code=0 word=ok
  shift
  seen="$("$@" 2>/dev/null | tail -n 1)" || code=$?
  case "$code" in
    0) ;;
    2) word=look ;;
    *) word=FAIL && FAILURES=$((FAILURES + 1)) ;;
  esac
  CHECKS=$((CHECKS + 1))
  printf '%-5s %-22s %s\n' "$word" "$name" "${seen:-no answer}"
}

check_unit() {
  local state
  state="$(systemctl show -p ActiveState,SubState --value "$1" | paste -sd ' ')"
  echo "$state"
  [[ "$state" == active* ]]
}

check_enabled() {
  local state
  state="$(systemctl is-enabled "$1" 2>/dev/null)"
  echo "${state:-not installed}"
  [[ "$state" == enabled ]] || return 2
}

# check_process PIDFILE PROGRAM: of run-local.sh.
check_process() {
  local pid
  pid="$(running_pid "$1" "$2")" || { echo "does not run" && return 1; }
  echo "runs, pid $pid"
}

# check_release PART: what runs is what is installed.
check_release() {
  local release
  release="$(part_release "$1")"
  if runs_release "$1" "$release"; then
    echo "$release"
  else
    echo "$release is installed, but another one runs: systemctl restart $(part_service "$1")" && return 1
  fi
}

check_api() {
  local answer
  answer="$(curl -sS --max-time 5 "$API_URL/health" 2>&1)" || { echo "${answer#curl: }" && return 1; }
  echo "$API_URL: $(jq -c 'del(.uptime_seconds)' <<<"$answer" 2>/dev/null || echo "$answer" | head -c 60)"
  jq -e '.status == "ok"' <<<"$answer" >/dev/null
}

check_secret_opens() {
  local code
  code="$(api_status /instances)"
  echo "GET /instances answers $code"
  [[ "$code" == 200 ]]
}

check_nodes() {
  local nodes
  nodes="$(api_get /nodes)" || { echo "GET /nodes fails" && return 1; }
  jq -r '([.[].warnings[]?] | map("; " + .) | join("")) as $warnings | group_by(.status)
    | map("\(length) \(.[0].status)") | (if . == [] then "none" else join(", ") end) + $warnings' <<<"$nodes"
  jq -e 'any(.[]; .status == "active")' <<<"$nodes" >/dev/null || return 1
  jq -e 'all(.[]; .status != "down" and ((.warnings // []) == []))' <<<"$nodes" >/dev/null || return 2
}

check_instances() {
  local instances
  instances="$(api_get /instances)" || { echo "GET /instances fails" && return 1; }
  jq -r '.instances | group_by(.status) | map("\(length) \(.[0].status)") | if . == [] then "none" else join(", ") end' <<<"$instances"
  jq -e 'any(.instances[]; .status == "error") | not' <<<"$instances" >/dev/null || return 2
}

# Any answer will do: without a host of an instance it is a page that says so.
check_ui() {
  local code
  code="$(curl -s --max-time 5 -o /dev/null -w '%{http_code}' "http://127.0.0.1:$1/")"
  echo "port $1 answers $code"
  [[ "$code" != 000 ]]
}

# check_certificate ADDRESS: what is shown to whoever connects. A refusal comes after that.
check_certificate() {
  local expires days
  expires="$(curl -skv --max-time 5 -o /dev/null "https://$1/" 2>&1 | sed -n 's/^\*  expire date: //p' | head -n 1)"
  [[ -n "$expires" ]] || { echo "$1 shows no certificate" && return 1; }
  days=$((($(date -d "$expires" +%s) - $(date +%s)) / 86400))
  echo "$1: valid for $days more days"
  ((days > 0)) || return 1
  ((days >= CERTIFICATE_DAYS_MINIMUM)) || return 2
}

check_ready() {
  local answer
  answer="$(curl -s --max-time 5 "http://$1/ready")"
  jq -r .status <<<"$answer"
  [[ "$(jq -r .status <<<"$answer")" == ready ]]
}

check_uplink() {
  local answer
  answer="$(curl -s --max-time 5 "http://$1/health")"
  jq -r 'if .coordinator_connected then "\(.node) is connected to the coordinator" else "no connection to the coordinator" end' <<<"$answer"
  jq -e .coordinator_connected <<<"$answer" >/dev/null
}

# check_doctor PROGRAM HEALTH: what the node agent itself finds.
check_doctor() {
  local said code=0
  said="$(CRABSHACK_HEALTH_LISTEN="$2" "$1" doctor 2>&1)" || code=$?
  if ((code == 0)); then echo "nothing to say"; else
    # The whole of it, since the table has room for one line only.
    printf '%s\n' "$said" >&3
    echo "see the lines above, or run: crabshack-node-agent doctor"
  fi
  return "$code"
}

check_docker() {
  local info
  info="$(engine_get "$(engine_socket)" /info)" || { echo "no answer at $(engine_socket)" && return 1; }
  jq -r '"\(.ServerVersion), \(.ContainersRunning) containers run" + if .LiveRestoreEnabled then "" else "; without live-restore a restart of Docker ends them" end' <<<"$info"
  jq -e .LiveRestoreEnabled <<<"$info" >/dev/null || return 2
}

check_table() {
  local chains
  chains="$(nft list table inet crabshack 2>/dev/null | grep -c 'chain ')" || { echo "there is no table inet crabshack" && return 1; }
  echo "inet crabshack, $chains chains"
}

# Two rules: what the node sends itself may pass, what is unmarked may not.
check_guard() {
  local rules
  rules="$(ip -4 rule show | awk -v pool="$POOL" '$2 == "from" && $3 == pool' | grep -cE '^(99|100):')"
  echo "$rules of 2 routing rules for $POOL"
  ((rules == 2))
}

check_service_address() {
  echo "$(service_address) on lo"
  [[ -n "$(ip -4 -o address show dev lo to "$(service_address)/32")" ]]
}

# check_pool DATA: mounted, when there is one.
check_pool() {
  [[ -e "$1/pool.json" ]] || { echo "none: volumes are plain folders, storage_size is not enforced" && return 2; }
  mountpoint -q "$1/instances" || { echo "$1/instances is not mounted" && return 1; }
  df -Ph "$1/instances" | awk 'NR == 2 {print $4 " of " $2 " free"}'
}

check_free() {
  local free percent
  [[ -d "$1" ]] || { echo "$1 is not there" && return 1; }
  free="$(df -Pm "$1" | awk 'NR == 2 {print $4}')"
  percent="$(df -Pm "$1" | awk 'NR == 2 {print int($4 * 100 / ($2 + 1))}')"
  echo "$1: $free MiB ($percent %) free"
  ((free >= FREE_MIB_MINIMUM && percent >= FREE_PERCENT_MINIMUM))
}
