# shellcheck shell=bash
# What the builds of small images have in common. Source it after setting IMAGE, VERSION, IMAGE_DIR
# and PACKAGES, and defining `fill ROOT` and `settings`; then call `build_image "$@"`:
#
#   build.sh                        builds it where needed and imports it into Docker
#   build.sh --docker-host URL      the same for another Docker engine (unix://...)
#   build.sh --tar-only             builds only the root filesystem's tar and prints its path
#   build.sh --tar-if-cached        prints that path if the tar is there, and nothing otherwise
#   build.sh --print-name           prints the image's name
#   build.sh --print-changes        prints the image's settings, one `docker import --change` a line
#
# The image carries a label with the hash of its recipe: when it is there, nothing is done. The tar is
# kept in ${CRABSHACK_CACHE_DIR:-/var/cache/crabshack}/images, so another engine gets it in seconds.

IMAGES_DIR="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
# shellcheck source=../scripts/lib.sh
source "$IMAGES_DIR/../scripts/lib.sh"

SUITE=bookworm
CACHE_DIR="${CRABSHACK_CACHE_DIR:-/var/cache/crabshack}/images"
HASH_LABEL=crabshack.image.recipe

build_image() {
  local mode=import hash tar arguments=("$@")
  hash="$(recipe_hash)"
  tar="$CACHE_DIR/$IMAGE-$hash.tar"
  while (($# > 0)); do
    case "$1" in
      --print-name) image_name && return ;;
      --print-changes) settings && printf 'LABEL %s=%s\n' "$HASH_LABEL" "$hash" && return ;;
      --tar-if-cached) if [[ -s "$tar" ]]; then printf '%s\n' "$tar"; fi && return ;;
      --tar-only) mode=tar ;;
      --docker-host)
        export DOCKER_HOST="${2:?--docker-host needs a URL}"
        shift
        ;;
      *) fail "unknown argument: $1" "see the head of $IMAGES_DIR/lib.sh" ;;
    esac
    shift
  done
  become_root "$0" "${arguments[@]}"
  if [[ "$mode" == import ]] && image_is_current "$hash"; then
    note "image $(image_name) is there already"
    return
  fi
  mkdir -p "$CACHE_DIR"
  with_lock "$CACHE_DIR/$IMAGE.lock" ensure_tar "$tar"
  if [[ "$mode" == tar ]]; then printf '%s\n' "$tar"; else import_image "$tar"; fi
}

image_name() { printf 'crabshack/%s:%s\n' "$IMAGE" "$VERSION"; }

# Debian's word for this machine's architecture.
debian_architecture() { case "$(uname -m)" in x86_64) echo amd64 ;; aarch64) echo arm64 ;; *) fail "no image for $(uname -m)" ;; esac; }

# Changes whenever a file of the image's folder or of this one (content, name or mode), a setting of the
# build or the architecture changes.
recipe_hash() {
  (
    cd "$IMAGE_DIR"
    uname -m
    printf '%s\n' "${BUILD_SETTINGS[@]-}"
    sha256sum <"$IMAGES_DIR/lib.sh"
    find . -type f -printf '%m %p\n' | LC_ALL=C sort
    find . -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum
  ) | sha256sum | cut -c 1-24
}

image_is_current() {
  local label
  label="$(docker image inspect --format "{{index .Config.Labels \"$HASH_LABEL\"}}" "$(image_name)" 2>/dev/null)" || return 1
  [[ "$label" == "$1" ]]
}

# with_lock FILE COMMAND...: one build at a time; who waited finds the tar made.
with_lock() {
  local lock="$1" descriptor
  shift
  exec {descriptor}>"$lock"
  flock -n "$descriptor" || { note "waiting for another build" && flock "$descriptor"; }
  "$@"
  exec {descriptor}>&-
}

ensure_tar() {
  [[ ! -s "$1" ]] || return 0
  install_packages debootstrap:debootstrap +debian-archive-keyring
  WORK_DIR="$(mktemp -d "$CACHE_DIR/build.XXXXXX")"
  trap 'rm -rf --one-file-system "$WORK_DIR"' EXIT
  step "Building image $(image_name)"
  build_base "$WORK_DIR/rootfs"
  fill "$WORK_DIR/rootfs"
  cp -r --no-preserve=ownership "$IMAGE_DIR/rootfs/." "$WORK_DIR/rootfs/"
  chown -R root:root "$WORK_DIR/rootfs/usr/local"
  chmod -R u=rwX,go=rX "$WORK_DIR/rootfs/usr/local"
  note "writing $1"
  tar -C "$WORK_DIR/rootfs" --numeric-owner --one-file-system --sort=name -cf "$1.partial" .
  mv "$1.partial" "$1"
  # A tar of an older recipe is never used again.
  find "$CACHE_DIR" -maxdepth 1 -name "$IMAGE-*.tar" ! -path "$1" -delete
}

# build_base ROOT: Debian with the image's packages and the user `agent`, and nothing that only a whole
# machine needs.
build_base() {
  local root="$1" mirror suite source
  # The machine's own source of Debian's packages; without one, debootstrap's default.
  mirror="$(debian_source "$SUITE")"
  note "installing the base system ($SUITE) from Debian's packages"
  run_logged "debootstrap" "$CACHE_DIR/$IMAGE-base.log" debootstrap --variant=minbase --arch="$(debian_architecture)" \
    --include="$PACKAGES" "$SUITE" "$root" ${mirror:+"$mirror"}
  for suite in "$SUITE-updates" "$SUITE-security"; do
    source="$(debian_source "$suite")"
    [[ -z "$source" ]] || printf 'deb %s %s main\n' "$source" "$suite" >>"$root/etc/apt/sources.list"
  done
  run_logged "security updates" "$CACHE_DIR/$IMAGE-updates.log" chroot "$root" /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin \
    DEBIAN_FRONTEND=noninteractive sh -c 'apt-get update && apt-get upgrade -y'
  chroot "$root" useradd --create-home --uid 1000 --shell /bin/bash agent
  # A locked account is refused by sshd; `*` has no password and is not locked.
  chroot "$root" usermod -p '*' agent
  # Host keys are made per instance, never shared by an image; the rest is of no use at run time.
  rm -rf "$root"/etc/ssh/ssh_host_* "$root"/var/lib/apt/lists/* "$root"/var/cache/apt/* "$root"/var/log/* \
    "$root"/usr/share/doc/* "$root"/usr/share/man/* "$root"/usr/share/locale/* "$root"/tmp/*
  : >"$root/etc/apt/sources.list"
  : >"$root/etc/resolv.conf"
  : >"$root/etc/hostname"
  mkdir -p "$root/etc/crabshack" "$root/run/sshd"
}

# debian_source SUITE: address of the first source of this suite that the machine's apt knows.
debian_source() {
  # shellcheck disable=SC2016
  apt-get indextargets --format '$(CODENAME) $(REPO_URI)' 'Created-By: Packages' 2>/dev/null |
    awk -v suite="$1" '$1 == suite { print $2; exit }' || true
}

import_image() {
  local change changes=()
  while IFS= read -r change; do changes+=(--change "$change"); done < <(build_image --print-changes)
  step "Importing image $(image_name) into Docker"
  docker import "${changes[@]}" "$1" "$(image_name)" >/dev/null
}
