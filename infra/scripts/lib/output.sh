# shellcheck shell=bash
# What the scripts say to people.

# A step of the work begins.
step() { printf '==> %s\n' "$*" >&2; }

# Something worth knowing inside a step.
note() { printf '    %s\n' "$*" >&2; }

# Something that may surprise, but does not stop the work.
warn() { printf '    warning: %s\n' "$*" >&2; }

# Ends the script: what is wrong, and (further arguments) what to do about it.
fail() {
  printf 'error: %s\n' "$1" >&2
  shift
  local line
  for line in "$@"; do printf '       %s\n' "$line" >&2; done
  exit 1
}

# run_logged LABEL LOG COMMAND...: runs a long command with its output in LOG, says every 15 s
# that it is still at work, and on failure shows the end of the log.
run_logged() {
  local label="$1" log="$2" began=$SECONDS next=15 pid code=0
  shift 2
  mkdir -p "$(dirname "$log")"
  "$@" >"$log" 2>&1 </dev/null &
  pid=$!
  # The shell makes background commands deaf for Ctrl-C.
  trap 'kill "$pid" 2>/dev/null; exit 130' INT TERM
  while kill -0 "$pid" 2>/dev/null; do
    sleep 0.2
    if ((SECONDS - began >= next)); then
      note "still $label ($((SECONDS - began)) s): $(last_line "$log")"
      next=$((next + 15))
    fi
  done
  wait "$pid" || code=$?
  trap - INT TERM
  if ((code != 0)); then
    tail -n 25 "$log" | sed 's/^/    | /' >&2
    fail "$label failed with exit code $code" "the whole log: $log"
  fi
  note "done: $label ($((SECONDS - began)) s)"
}

# The last line of a log that says anything, cut to fit a terminal.
last_line() {
  tail -c 2000 "$1" 2>/dev/null | tr '\r' '\n' | grep -v '^[[:space:]]*$' | tail -n 1 | cut -c 1-90 || true
}

# wait_until SECONDS COMMAND...: asks every 0.3 s until the command succeeds; fails when it never did.
wait_until() {
  local deadline=$((SECONDS + $1))
  shift
  until "$@" >/dev/null 2>&1; do
    ((SECONDS < deadline)) || return 1
    sleep 0.3
  done
}
