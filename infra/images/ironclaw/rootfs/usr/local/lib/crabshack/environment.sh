# shellcheck shell=sh
# Puts /etc/crabshack/env (KEY=VALUE lines, values literal) into the environment. Sourced.

if [ -r /etc/crabshack/env ]; then
  while IFS= read -r crabshack_line || [ -n "$crabshack_line" ]; do
    case "${crabshack_line%%=*}" in
      "$crabshack_line" | '' | [0-9]* | *[!A-Za-z0-9_]*) ;;
      *) export "${crabshack_line%%=*}=${crabshack_line#*=}" ;;
    esac
  done </etc/crabshack/env
  unset crabshack_line
fi
