# shellcheck shell=bash
# Background processes by pid file. A signal is sent only to a process that still is the program it
# was started as: process ids are used again.

# Two runs at once would do everything twice. Descriptor 9 is closed for what we start.
one_at_a_time() {
  exec 9>"/run/crabshack-local.lock"
  flock -n 9 || fail "another run of this script, or of one like it, is at work" "wait for it to end"
}

# running_pid PIDFILE PROGRAM: prints the pid when that process runs and is the program.
running_pid() {
  local pid exe
  pid="$(cat "$1" 2>/dev/null)" || return 1
  [[ "$pid" =~ ^[0-9]+$ ]] || return 1
  exe="$(readlink "/proc/$pid/exe" 2>/dev/null)" || return 1
  # The kernel adds this when the file was replaced since.
  [[ "${exe% (deleted)}" == "$2" ]] || return 1
  printf '%s\n' "$pid"
}

# runs_replaced_program PIDFILE: true when the program's file was replaced since the process started.
runs_replaced_program() { [[ "$(readlink "/proc/$(cat "$1")/exe" 2>/dev/null)" == *" (deleted)" ]]; }

# start_process PIDFILE LOG PROGRAM ARGUMENTS...: starts it detached from this terminal.
start_process() {
  local pid_file="$1" log="$2"
  shift 2
  # `exec` keeps the pid that setsid's child writes down; our lock (descriptor 9) is not passed on.
  # shellcheck disable=SC2016
  setsid --fork bash -c 'echo $$ >"$0"; exec "$@"' "$pid_file" "$@" >>"$log" 2>&1 </dev/null 9>&-
  wait_until 5 running_pid "$pid_file" "$(readlink -f "$1")" ||
    fail "$(basename "$1") ended at once: $(last_line "$log")" "its log: $log"
}

# stop_process PIDFILE PROGRAM SECONDS: TERM, then KILL when it takes longer.
stop_process() {
  local pid
  pid="$(running_pid "$1" "$2")" || { rm -f "$1" && return; }
  kill -TERM "$pid" 2>/dev/null || true
  if ! wait_until "$3" process_gone "$1" "$2"; then
    warn "$(basename "$2") did not stop in $3 s and is killed"
    kill -KILL "$pid" 2>/dev/null || true
    wait_until 5 process_gone "$1" "$2" || fail "$(basename "$2") (pid $pid) cannot be killed"
  fi
  rm -f "$1"
}

process_gone() { ! running_pid "$1" "$2" >/dev/null; }

# await_process PIDFILE PROGRAM SECONDS COMMAND...: waits until the command succeeds; fails early when the process ended.
await_process() {
  local pid_file="$1" program="$2" deadline=$((SECONDS + $3))
  shift 3
  until "$@" >/dev/null 2>&1; do
    running_pid "$pid_file" "$program" >/dev/null && ((SECONDS < deadline)) || return 1
    sleep 0.2
  done
}
