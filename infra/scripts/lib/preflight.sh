# shellcheck shell=bash
# Refuses by name what is not supported, before anything is changed. A check is a pure function: it
# gets what was read, prints why it refuses, or prints nothing.

MEMORY_MINIMUM_MIB=3500
DISK_MINIMUM_MIB=8000

# preflight_machine FOLDER: what can be told before anything is installed. FOLDER will hold the data.
preflight_machine() {
  refuse_if "$(check_platform "$(uname -s)" "$(uname -m)")"
  # shellcheck source=/dev/null
  refuse_if "$(check_distribution "$( . /etc/os-release 2>/dev/null; printf '%s %s' "${ID:-unknown}" "${VERSION_ID:-0}")")"
  refuse_if "$(check_selinux "$(cat /sys/fs/selinux/enforce 2>/dev/null || true)")"
  refuse_if "$(check_addresses "$(addresses -4)" "$(addresses -6)")"
  refuse_if "$(check_memory "$(awk '/^MemTotal/ {print int($2 / 1024)}' /proc/meminfo)")"
  refuse_if "$(check_disk "$1" "$(free_mib "$1")")"
  refuse_if "$(check_docker_client "${DOCKER_HOST:-}" "$(docker_client_version)")"
}

# preflight_engine SOCKET: what only the installed tools and the running engine can tell.
preflight_engine() {
  nft list tables >/dev/null 2>&1 || refuse_if "the kernel has no nf_tables (\`nft list tables\` fails): egress rules cannot be enforced"
  refuse_if "$(check_engine "$(engine_get "$1" /version)" "$(engine_get "$1" /info)")"
}

refuse_if() { [[ -z "$1" ]] || fail "not supported: $1"; }

check_platform() {
  [[ "$1" == Linux ]] || { echo "$1; a node is a Linux machine" && return; }
  case "$2" in x86_64 | aarch64) ;; *) echo "processor architecture $2; use x86-64 or aarch64" ;; esac
}

# Takes `ID VERSION`. On any other distribution nothing can be installed, so everything must be there.
check_distribution() {
  local id="${1% *}" version="${1#* }" missing
  case "$id" in
    debian) version_at_least 12 "$version" || echo "Debian $version; use Debian 12 or later" ;;
    ubuntu) version_at_least 22.04 "$version" || echo "Ubuntu $version; use Ubuntu 22.04 or later" ;;
    *)
      missing="$(missing_commands "${RUN_PACKAGES[@]}" "${IMAGE_PACKAGES[@]}")"
      [[ -z "$missing" ]] || echo "installing packages on $id; install what brings these commands (Debian's package in brackets): $missing"
      ;;
  esac
}

# missing_commands LINE...: like missing_packages, for people.
missing_commands() {
  local line
  for line in "$@"; do
    [[ "$line" == +* ]] || command -v "${line%%:*}" >/dev/null || printf '%s (%s) ' "${line%%:*}" "${line##*:}"
  done
}

check_selinux() { [[ "$1" != 1 ]] || echo "SELinux in enforcing mode; set it to permissive (setenforce 0) or use another machine"; }

# Global addresses of one family, one a line.
addresses() { ip "$1" -o address show scope global 2>/dev/null | awk '{print $4}' || true; }

check_addresses() { [[ -n "$1" || -z "$2" ]] || echo "a machine with IPv6 addresses only; it needs an IPv4 address too"; }

check_memory() {
  (($1 >= MEMORY_MINIMUM_MIB)) || echo "$1 MiB of memory; one agent and the build need $MEMORY_MINIMUM_MIB MiB"
}

# free_mib FOLDER: free space where the folder is or will be.
free_mib() {
  local folder="$1"
  while [[ ! -d "$folder" ]]; do folder="$(dirname "$folder")"; done
  df -Pm "$folder" | awk 'NR == 2 {print $4}'
}

# What is built and running already has its space.
check_disk() {
  local minimum="$DISK_MINIMUM_MIB"
  [[ ! -d "$1/bin" && ! -d "$1/coordinator" ]] || minimum=1000
  (($2 >= minimum)) || echo "$2 MiB free for $1; at least $minimum MiB are needed"
}

docker_client_version() { if command -v docker >/dev/null; then docker --version 2>/dev/null || true; fi; }

check_docker_client() {
  if [[ "${2,,}" == *podman* ]]; then
    echo "Podman posing as docker; install the Docker engine (package docker.io) instead of podman-docker"
  elif [[ -n "$1" && "$1" != unix://* ]]; then
    echo "a Docker engine elsewhere (DOCKER_HOST=$1); unset DOCKER_HOST or point it to a local unix:// socket"
  fi
}

# Takes the engine's answers to /version and /info.
check_engine() {
  local version
  version="$(jq -r '.Version // ""' <<<"$1")"
  if jq -e '[.Components[]?.Name] | any(test("podman"; "i"))' <<<"$1" >/dev/null; then
    echo "Podman behind Docker's socket; run the Docker engine there"
  elif jq -e '[.SecurityOptions[]?] | any(test("name=rootless"))' <<<"$2" >/dev/null; then
    echo "rootless Docker; run the Docker engine as root (package docker.io)"
  elif jq -e '.OSType != "linux"' <<<"$2" >/dev/null; then
    echo "a Docker engine for $(jq -r .OSType <<<"$2")"
  elif ! version_at_least 20.10 "$version"; then
    echo "Docker ${version:-of unknown version}; use 20.10 or later"
  fi
}
