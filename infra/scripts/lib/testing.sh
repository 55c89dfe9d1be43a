# shellcheck shell=bash
# The frame of the scripts' tests: functions named `subject__should_do_this`.

PASSED=0
FAILED=0

# expect NAME PATTERN TEXT: TEXT matches the pattern; an empty pattern wants nothing at all.
expect() {
  # The pattern is one on purpose.
  # shellcheck disable=SC2053
  if [[ "$3" == $2 ]]; then
    PASSED=$((PASSED + 1))
  else
    FAILED=$((FAILED + 1))
    printf '%s: wanted "%s", got "%s"\n' "$1" "$2" "$3"
  fi
}

# verdict COMMAND...: `yes` or `no`.
verdict() { if "$@" >/dev/null 2>&1; then echo yes; else echo no; fi; }

run_tests() {
  local test
  while read -r test; do "$test"; done < <(compgen -A function | grep __should_)
  printf '%s passed, %s failed\n' "$PASSED" "$FAILED"
  ((FAILED == 0))
}
