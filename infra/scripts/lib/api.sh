# shellcheck shell=bash
# The coordinator's public API. The admin secret goes through a header file, never through argv.

# api_setup URL SECRET_FILE: for the calls below.
api_setup() {
  API_URL="$1"
  API_HEADERS="$(mktemp)"
  chmod 600 "$API_HEADERS"
  printf 'Authorization: Bearer %s\n' "$(cat "$2")" >"$API_HEADERS"
}

api_close() { [[ -z "${API_HEADERS:-}" ]] || rm -f "$API_HEADERS"; }

# api_get PATH: prints the body; exit code 22 on 4xx and 5xx.
api_get() { curl -sS --fail --max-time 20 -H "@$API_HEADERS" "$API_URL$1"; }

# api_status PATH: prints only the HTTP status.
api_status() { curl -sS --max-time 20 -o /dev/null -w '%{http_code}' -H "@$API_HEADERS" "$API_URL$1"; }

# api_stream METHOD PATH [BODY]: sends the body, shows the events of the answer as they come, and
# prints the stage of the last one. A refusal ends the script with the API's own words.
api_stream() {
  local method="$1" path="$2" body="${3:-}" answer line stage='' message previous=''
  answer="$(mktemp)"
  while IFS= read -r line; do
    printf '%s\n' "$line" >>"$answer"
    [[ "$line" == "data: "* ]] || continue
    stage="$(jq -r '.stage // ""' <<<"${line#data: }")"
    message="$(jq -r '.message // ""' <<<"${line#data: }")"
    [[ "$stage $message" == "$previous" ]] || note "$stage: $message"
    previous="$stage $message"
  done < <(printf '%s' "$body" |
    curl -sS -N --max-time 600 -X "$method" -H "@$API_HEADERS" -H 'Content-Type: application/json' --data-binary @- "$API_URL$path" 2>&1)
  if [[ -z "$stage" ]]; then
    line="$(jq -r '"\(.error) (\(.code))"' "$answer" 2>/dev/null || cat "$answer")"
    rm -f "$answer"
    fail "$method $path was refused: $line"
  fi
  rm -f "$answer"
  printf '%s\n' "$stage"
}
