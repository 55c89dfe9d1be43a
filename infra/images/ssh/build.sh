#!/usr/bin/env bash
# Builds the image of the SSH server that stands beside agents without one of their own, from the
# distribution's packages. Arguments: see infra/images/lib.sh.
set -euo pipefail

IMAGE_DIR="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
IMAGE=ssh
VERSION=1
# With what people need to look around in a home.
PACKAGES=openssh-server,ca-certificates,git,procps,less,rsync
# shellcheck source=../lib.sh
source "$IMAGE_DIR/../lib.sh"

fill() { :; }

settings() {
  cat <<'END'
USER 1000:1000
WORKDIR /home/agent
ENTRYPOINT ["/usr/local/bin/crabshack-entrypoint"]
EXPOSE 2222
ENV HOME=/home/agent
ENV LANG=C.UTF-8
END
}

build_image "$@"
