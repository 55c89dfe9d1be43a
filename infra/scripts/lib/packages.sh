# shellcheck shell=bash
# Packages of the distribution. A line is `command:package`; what has no command of its own is
# `+package` and asked for by name.

# shellcheck disable=SC2034
RUN_PACKAGES=(
  cc:gcc +libc6-dev curl:curl +ca-certificates jq:jq nft:nftables conntrack:conntrack iptables:iptables
  restic:restic ip:iproute2 ssh:openssh-client dockerd:docker.io docker:docker-cli
)
# shellcheck disable=SC2034
POOL_PACKAGES=(btrfs:btrfs-progs)
# What verifies units, also where systemd does not run.
# shellcheck disable=SC2034
UNIT_PACKAGES=(systemd-analyze:systemd)
# What lets clocks jump in tests.
# shellcheck disable=SC2034
CLOCK_PACKAGES=(faketime:faketime)
# A registry for the tests of images.
# shellcheck disable=SC2034
REGISTRY_PACKAGES=(docker-registry:docker-registry)
# shellcheck disable=SC2034
IMAGE_PACKAGES=(debootstrap:debootstrap +debian-archive-keyring npm:npm)

# package_missing LINE: true when what the line names is not on this machine.
package_missing() {
  if [[ "$1" == +* ]]; then
    [[ "$(dpkg-query -W -f '${db:Status-Status}' "${1#+}" 2>/dev/null)" != installed ]]
  else
    ! command -v "${1%%:*}" >/dev/null
  fi
}

# Names of the packages that the given lines ask for and the machine lacks.
missing_packages() {
  local line package
  for line in "$@"; do
    package_missing "$line" || continue
    package="${line#+}"
    package="${package##*:}"
    # Before Debian 13 the client is part of docker.io.
    if [[ "$package" == docker-cli ]] && ! apt-cache show docker-cli >/dev/null 2>&1; then
      package=docker.io
    fi
    printf '%s\n' "$package"
  done | sort -u
}

# install_packages LINE...: installs what is missing and nothing else.
install_packages() {
  local missing log
  mapfile -t missing < <(missing_packages "$@")
  ((${#missing[@]} > 0)) || return 0
  command -v apt-get >/dev/null || fail "missing on this machine: ${missing[*]}" \
    "packages are installed by themselves on Debian 12+ and Ubuntu 22.04+ only" \
    "install what these (Debian) packages hold and run this again"
  step "Installing packages: ${missing[*]}"
  log="$(mktemp /tmp/crabshack-apt.XXXXXX)"
  run_logged "reading the package lists" "$log" apt-get update
  # The lists are new: a package that was unknown before may be known now.
  mapfile -t missing < <(missing_packages "$@")
  run_logged "installing packages" "$log" \
    env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${missing[@]}"
  rm -f "$log"
  hash -r
}
