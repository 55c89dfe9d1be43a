# shellcheck shell=bash
# Bringing Crabshack up on one machine. Each function leaves alone what is right already.

FIRST_INSTANCE=my-agent
FIRST_MEMORY=2g
FIRST_CPUS=1
FIRST_STORAGE=10g

# Where everything lies and listens.
local_layout() {
  DATA_DIR="$(readlink -m "${CRABSHACK_LOCAL_DIR:-/var/lib/crabshack}")"
  SECRET_FILE="$DATA_DIR/admin-secret"
  JOIN_TOKEN_FILE="$DATA_DIR/join-token"
  COORDINATOR="$DATA_DIR/bin/crabshack"
  NODE_AGENT="$DATA_DIR/bin/crabshack-node-agent"
  COORDINATOR_PID="$DATA_DIR/run/coordinator.pid"
  NODE_AGENT_PID="$DATA_DIR/run/node-agent.pid"
  API_PORT="${CRABSHACK_PORT:-7700}"
  UI_PORT="${CRABSHACK_UI_PORT:-3000}"
  HEALTH_ADDRESS="${CRABSHACK_HEALTH_LISTEN:-127.0.0.1:7703}"
  # shellcheck disable=SC2034
  POOL="${CRABSHACK_POOL:-10.201.0.0/16}"
  API_URL="http://127.0.0.1:$API_PORT"
}

ui_url() { printf '%s' "${CRABSHACK_PUBLIC_URL:-http://${CRABSHACK_UI_ZONE:-localhost}:$UI_PORT}"; }

prepare_data_dir() {
  # The marker tells --purge that the folder is ours.
  install -d -m 711 "$DATA_DIR"
  install -d -m 755 "$DATA_DIR/bin" "$DATA_DIR/run"
  install -d -m 700 "$DATA_DIR/log" "$DATA_DIR/coordinator"
  touch "$DATA_DIR/.crabshack-local"
  if [[ ! -s "$SECRET_FILE" ]]; then
    (umask 077 && od -An -N32 -tx1 /dev/urandom | tr -d ' \n' >"$SECRET_FILE")
    note "made an admin secret: $SECRET_FILE"
  fi
}

# Both ways on one machine would fight for ports and containers.
refuse_services() {
  [[ ! -e /etc/systemd/system/crabshack-api.service ]] ||
    fail "Crabshack is installed as services here" "use systemctl and deploy.sh; \`deploy.sh --uninstall\` removes the services"
}

# Builds both programs and puts them where they run from, so that building again disturbs nothing.
build_programs() {
  local built
  step "Building the programs (the first time this takes some minutes)"
  built="$(build_release "$DATA_DIR/log/build.log")"
  install_program "$built/crabshack" "$COORDINATOR"
  install_program "$built/crabshack-node-agent" "$NODE_AGENT"
}

# install_program FROM TO: by renaming, so that a running one is never written into.
install_program() {
  cmp -s "$1" "$2" && return
  install -m 755 "$1" "$2.new"
  mv "$2.new" "$2"
}

ensure_image() {
  local build="$REPOSITORY_DIR/infra/images/openclaw/build.sh"
  IMAGE="$("$build" --print-name)"
  step "Image $IMAGE"
  "$build"
}

# keep_running PIDFILE LOG PROGRAM ARGUMENTS...: starts it, or restarts it when the program is a newer one.
keep_running() {
  local pid_file="$1" program="$3" name
  name="$(basename "$program")"
  if running_pid "$pid_file" "$program" >/dev/null; then
    if ! runs_replaced_program "$pid_file"; then
      note "$name runs already"
      return
    fi
    note "$name is restarted with the newer program; the instances go on"
    stop_process "$pid_file" "$program" 30
  fi
  start_process "$@"
  note "$name started (log: $2)"
}

start_coordinator() {
  step "Coordinator"
  CRABSHACK_ADMIN_SECRET_FILE="$SECRET_FILE" CRABSHACK_DATA_DIR="$DATA_DIR/coordinator" \
    keep_running "$COORDINATOR_PID" "$DATA_DIR/log/coordinator.log" "$COORDINATOR" serve
  await_process "$COORDINATOR_PID" "$COORDINATOR" 30 curl -sf --max-time 2 "$API_URL/health" ||
    fail "the coordinator does not answer at $API_URL: $(last_line "$DATA_DIR/log/coordinator.log")" \
      "its log: $DATA_DIR/log/coordinator.log" "if another program has a port, set CRABSHACK_PORT or CRABSHACK_UI_PORT"
  api_setup "$API_URL" "$SECRET_FILE"
}

start_node_agent() {
  local join=() data="$DATA_DIR/node-agent"
  step "Node agent"
  if [[ ! -s "$data/node.pem" ]]; then
    (umask 077 && CRABSHACK_ADMIN_SECRET_FILE="$SECRET_FILE" CRABSHACK_PORT="$API_PORT" "$COORDINATOR" join-token >"$JOIN_TOKEN_FILE")
    join=(--join-token-file "$JOIN_TOKEN_FILE")
  fi
  CRABSHACK_AGENT_DATA_DIR="$data" CRABSHACK_DOCKER_SOCKET="unix://$(engine_socket)" \
    CRABSHACK_COORDINATOR="${CRABSHACK_AGENT_LISTEN:-127.0.0.1:7701}" \
    keep_running "$NODE_AGENT_PID" "$DATA_DIR/log/node-agent.log" "$NODE_AGENT" "${join[@]}"
  await_process "$NODE_AGENT_PID" "$NODE_AGENT" 60 curl -sf --max-time 2 "http://$HEALTH_ADDRESS/ready" ||
    fail "the node agent is not ready: $(last_line "$DATA_DIR/log/node-agent.log")" "its log: $DATA_DIR/log/node-agent.log"
  wait_until 30 node_is_connected ||
    fail "the node agent does not reach the coordinator" "its log: $DATA_DIR/log/node-agent.log"
  rm -f "$JOIN_TOKEN_FILE"
}

node_is_connected() { curl -sf --max-time 2 "http://$HEALTH_ADDRESS/health" | jq -e .coordinator_connected; }

# Made once; started when it is stopped; awaited when it is on its way.
ensure_first_instance() {
  local code
  step "Instance $FIRST_INSTANCE"
  code="$(api_status "/instances/$FIRST_INSTANCE")"
  case "$code" in
    200) [[ "$(instance_status)" != stopped ]] || api_stream POST "/instances/$FIRST_INSTANCE/start" >/dev/null ;;
    404) api_stream POST /instances "$(first_instance_request)" >/dev/null ;;
    *) fail "the API answers $code" "the coordinator's log: $DATA_DIR/log/coordinator.log" ;;
  esac
  wait_until 180 instance_is_ready ||
    fail "$FIRST_INSTANCE is not ready: $(api_get "/instances/$FIRST_INSTANCE" | jq -r '"\(.status), \(.phase), \(.reason // "no reason given")"')" \
      "its log: curl -H \"Authorization: Bearer \$(cat $SECRET_FILE)\" $API_URL/instances/$FIRST_INSTANCE/logs" \
      "the node agent's log: $DATA_DIR/log/node-agent.log"
  note "$FIRST_INSTANCE is ready"
}

instance_status() { api_get "/instances/$FIRST_INSTANCE" | jq -r .status; }

# `status` stays `running` while an instance starts again; a silent node would leave its last phase.
instance_is_ready() {
  api_get "/instances/$FIRST_INSTANCE" | jq -e '.phase == "ready" and .reason != "its node does not report"' >/dev/null
}

first_instance_request() {
  local key="${NEARAI_API_KEY:-}" url="${NEARAI_API_URL:-https://cloud-api.near.ai/v1}"
  [[ -n "$key" ]] || warn "NEARAI_API_KEY is not set: the agent starts, but has no model to talk to"
  # Secrets go through the environment of jq, not through argv.
  NEARAI_KEY="${key:-placeholder-set-NEARAI_API_KEY}" jq -nc --arg name "$FIRST_INSTANCE" --arg image "$IMAGE" --arg url "$url" \
    --arg memory "$FIRST_MEMORY" --arg cpus "$FIRST_CPUS" --arg storage "$FIRST_STORAGE" --arg ssh "$(ssh_public_key)" \
    '{name: $name, service_type: "openclaw", image: $image, mem_limit: $memory, cpus: $cpus, storage_size: $storage,
      nearai_api_key: env.NEARAI_KEY, nearai_api_url: $url, ssh_pubkey: $ssh}'
}

# The user's own public key, or one made here.
ssh_public_key() {
  local own
  for own in "$(invoking_home)"/.ssh/id_{ed25519,ecdsa,rsa}.pub; do
    if [[ -s "$own" ]]; then
      head -n 1 "$own"
      return
    fi
  done
  [[ -s "$DATA_DIR/ssh/id_ed25519" ]] || make_ssh_key
  cat "$DATA_DIR/ssh/id_ed25519.pub"
}

make_ssh_key() {
  install -d -m 711 "$DATA_DIR/ssh"
  ssh-keygen -q -t ed25519 -N '' -C crabshack-local -f "$DATA_DIR/ssh/id_ed25519"
  chown "$(invoking_user)" "$DATA_DIR/ssh/id_ed25519"
  note "no SSH key of yours was found: made $DATA_DIR/ssh/id_ed25519"
}

# ssh_line_of DETAILS: the API's line; with `-i` where the key was made here.
ssh_line_of() {
  local line key
  line="$(jq -r '.ssh_command // "not available"' <<<"$1")"
  key="$(awk '{print $2}' "$DATA_DIR/ssh/id_ed25519.pub" 2>/dev/null || true)"
  if [[ -n "$key" && "$(jq -r '.ssh_pubkey // ""' <<<"$1")" == *"$key"* ]]; then
    line="ssh -i $DATA_DIR/ssh/id_ed25519 ${line#ssh }"
  fi
  printf '%s\n' "$line"
}
