#!/usr/bin/env bash
# Builds the image that runs OpenClaw, from the distribution's packages and npm; no image registry.
#
#   build.sh                        builds it where needed and imports it into Docker
#   build.sh --docker-host URL      the same for another Docker engine (unix://...)
#   build.sh --tar-only             builds only the root filesystem's tar and prints its path
#   build.sh --print-name           prints the image's name
#   build.sh --print-changes        prints the image's settings, one `docker import --change` a line
#
# The image carries a label with the hash of its recipe (this folder): when it is there, nothing is done.
# The tar is kept in ${CRABSHACK_CACHE_DIR:-/var/cache/crabshack}/images, so another engine gets it in seconds.
set -euo pipefail

RECIPE_DIR="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
# shellcheck source=../../scripts/lib.sh
source "$RECIPE_DIR/../../scripts/lib.sh"

SUITE=bookworm
BASE_PACKAGES=openssh-server,ca-certificates,git,procps
CACHE_DIR="${CRABSHACK_CACHE_DIR:-/var/cache/crabshack}/images"
HASH_LABEL=crabshack.image.recipe

main() {
  local mode=import hash tar arguments=("$@")
  while (($# > 0)); do
    case "$1" in
      --print-name) image_name && return ;;
      --print-changes) image_changes "$(recipe_hash)" && return ;;
      --tar-only) mode=tar ;;
      --docker-host)
        export DOCKER_HOST="${2:?--docker-host needs a URL}"
        shift
        ;;
      *) fail "unknown argument: $1" "see the head of $0" ;;
    esac
    shift
  done
  become_root "$0" "${arguments[@]}"
  hash="$(recipe_hash)"
  tar="$CACHE_DIR/openclaw-$hash.tar"
  if [[ "$mode" == import ]] && image_is_current "$hash"; then
    note "image $(image_name) is there already"
    return
  fi
  mkdir -p "$CACHE_DIR"
  with_lock "$CACHE_DIR/openclaw.lock" ensure_tar "$tar"
  if [[ "$mode" == tar ]]; then printf '%s\n' "$tar"; else import_image "$tar" "$hash"; fi
}

image_name() { printf 'crabshack/openclaw:%s\n' "$(openclaw_version)"; }

openclaw_version() { sed -n 's/.*"openclaw": "\([^"]*\)".*/\1/p' "$RECIPE_DIR/app/package.json"; }

# Debian's word for this machine's architecture, and npm's.
debian_architecture() { case "$(uname -m)" in x86_64) echo amd64 ;; aarch64) echo arm64 ;; *) fail "no image for $(uname -m)" ;; esac; }
node_architecture() { case "$(uname -m)" in x86_64) echo x64 ;; aarch64) echo arm64 ;; esac; }

# Changes whenever a file of this folder (content, name or mode) or the architecture changes.
recipe_hash() {
  (
    cd "$RECIPE_DIR"
    uname -m
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
  install_packages "${IMAGE_PACKAGES[@]}"
  WORK_DIR="$(mktemp -d "$CACHE_DIR/build.XXXXXX")"
  trap 'rm -rf --one-file-system "$WORK_DIR"' EXIT
  step "Building image $(image_name) (needed once, about 3 minutes)"
  build_base "[1/5]"
  install_node "[2/5]"
  install_openclaw "[3/5]"
  assemble "[4/5]"
  note "[5/5] writing $1"
  tar -C "$WORK_DIR/rootfs" --numeric-owner --one-file-system --sort=name -cf "$1.partial" .
  mv "$1.partial" "$1"
  drop_old_tars "$1"
}

# A tar of an older recipe is never used again.
drop_old_tars() {
  find "$CACHE_DIR" -maxdepth 1 -name 'openclaw-*.tar' ! -path "$1" -delete
}

build_base() {
  local root="$WORK_DIR/rootfs" mirror
  # The machine's own source of Debian's packages; without one, debootstrap's default.
  mirror="$(debian_source "$SUITE")"
  note "$1 installing the base system ($SUITE) from Debian's packages"
  run_logged "debootstrap" "$CACHE_DIR/base.log" debootstrap --variant=minbase --arch="$(debian_architecture)" \
    --include="$BASE_PACKAGES" "$SUITE" "$root" ${mirror:+"$mirror"}
  run_logged "security updates" "$CACHE_DIR/updates.log" update_base "$root"
  configure_base "$root"
}

# debian_source SUITE: address of the first source of this suite that the machine's apt knows.
debian_source() {
  # shellcheck disable=SC2016
  apt-get indextargets --format '$(CODENAME) $(REPO_URI)' 'Created-By: Packages' 2>/dev/null |
    awk -v suite="$1" '$1 == suite { print $2; exit }' || true
}

update_base() {
  local root="$1" suite source
  for suite in "$SUITE-updates" "$SUITE-security"; do
    source="$(debian_source "$suite")"
    [[ -z "$source" ]] || printf 'deb %s %s main\n' "$source" "$suite" >>"$root/etc/apt/sources.list"
  done
  chroot "$root" apt-get update
  DEBIAN_FRONTEND=noninteractive chroot "$root" apt-get upgrade -y
}

configure_base() {
  local root="$1"
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

# npm_install FOLDER LOG: exactly what the lock file says. No script of a package is run.
npm_install() {
  run_logged "npm" "$2" npm ci --prefix "$1" --ignore-scripts --no-audit --no-fund --loglevel=error --cache "$WORK_DIR/npm-cache"
}

# Any npm fetches the pinned Node.js and npm; these do the rest.
install_node() {
  note "$1 installing Node.js from npm"
  cp -r "$RECIPE_DIR/builder" "$WORK_DIR/builder"
  npm_install "$WORK_DIR/builder" "$CACHE_DIR/node.log"
  NODE_BINARY="$WORK_DIR/builder/node_modules/node-linux-$(node_architecture)/bin/node"
  chmod 755 "$NODE_BINARY"
  # Some versions of npm link it themselves, some do not.
  ln -sf "$NODE_BINARY" "$WORK_DIR/builder/node_modules/.bin/node"
  "$NODE_BINARY" --version >/dev/null || fail "the Node.js from npm does not run on this machine"
}

install_openclaw() {
  note "$1 installing OpenClaw $(openclaw_version) from npm"
  cp -r "$RECIPE_DIR/app" "$WORK_DIR/app"
  PATH="$WORK_DIR/builder/node_modules/.bin:$PATH" npm_install "$WORK_DIR/app" "$CACHE_DIR/openclaw.log"
}

assemble() {
  local root="$WORK_DIR/rootfs" modules="$WORK_DIR/app/node_modules"
  note "$1 putting the image together"
  # Nothing at run time reads source maps and type declarations.
  find "$modules" -type f \( -name '*.map' -o -name '*.d.ts' -o -name '*.d.mts' -o -name '*.d.cts' \) -delete
  mkdir -p "$root/opt/openclaw" "$root/usr/local/lib/node_modules"
  mv "$modules" "$root/opt/openclaw/node_modules"
  cp "$NODE_BINARY" "$root/usr/local/bin/node"
  mv "$WORK_DIR/builder/node_modules/npm" "$root/usr/local/lib/node_modules/npm"
  ln -s ../lib/node_modules/npm/bin/npm-cli.js "$root/usr/local/bin/npm"
  ln -s ../lib/node_modules/npm/bin/npx-cli.js "$root/usr/local/bin/npx"
  cp -r --no-preserve=ownership "$RECIPE_DIR/rootfs/." "$root/"
  chown -R root:root "$root/opt/openclaw" "$root/usr/local"
  chmod -R u=rwX,go=rX "$root/opt/openclaw" "$root/usr/local"
  complete_openclaw "$root"
}

# OpenClaw refuses to start from a read-only folder before its own postinstall has run. It runs
# where it will live, inside the new root and without privilege.
complete_openclaw() {
  local root="$1" package=opt/openclaw/node_modules/openclaw
  chown -R 1000:1000 "$root/$package"
  run_logged "OpenClaw's postinstall" "$CACHE_DIR/postinstall.log" chroot --userspec=1000:1000 "$root" \
    /usr/bin/env -i HOME=/home/agent PATH=/usr/local/bin:/usr/bin:/bin \
    sh -c "cd /$package && node scripts/postinstall-bundled-plugins.mjs"
  chown -R root:root "$root/$package"
  rm -rf "$root"/tmp/* "$root"/home/agent/.[a-z]*
  cp -r --no-preserve=ownership "$root/etc/skel/." "$root/home/agent/"
  chown -R 1000:1000 "$root/home/agent"
  [[ ! -e "$root/$package/.openclaw-lifecycle-pending" ]] ||
    fail "OpenClaw's postinstall left its work undone" "see $CACHE_DIR/postinstall.log"
}

image_changes() {
  cat <<END
USER 1000:1000
WORKDIR /home/agent
ENTRYPOINT ["/usr/local/bin/crabshack-entrypoint"]
EXPOSE 18789 2222
ENV HOME=/home/agent
ENV LANG=C.UTF-8
ENV PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin:/home/agent/.local/bin
ENV NODE_ENV=production
ENV NPM_CONFIG_PREFIX=/home/agent/.local
ENV OPENCLAW_DISABLE_BONJOUR=1
ENV OPENCLAW_NO_RESPAWN=1
LABEL $HASH_LABEL=$1
END
}

import_image() {
  local tar="$1" hash="$2" change changes=()
  while IFS= read -r change; do changes+=(--change "$change"); done < <(image_changes "$hash")
  step "Importing image $(image_name) into Docker"
  docker import "${changes[@]}" "$tar" "$(image_name)" >/dev/null
}

main "$@"
