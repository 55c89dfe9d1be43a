# shellcheck shell=bash
# What the scripts share. Source it; it runs nothing by itself.
#
# A script that sources this has `set -euo pipefail` on. Everything said to people goes to
# standard error, so that standard output holds results only.

SCRIPTS_DIR="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
# Used by the scripts that source this.
# shellcheck disable=SC2034
REPOSITORY_DIR="$(cd "$SCRIPTS_DIR/../.." && pwd)"

# shellcheck source=lib/output.sh
source "$SCRIPTS_DIR/lib/output.sh"
# shellcheck source=lib/privilege.sh
source "$SCRIPTS_DIR/lib/privilege.sh"
# shellcheck source=lib/packages.sh
source "$SCRIPTS_DIR/lib/packages.sh"
# shellcheck source=lib/rust.sh
source "$SCRIPTS_DIR/lib/rust.sh"
# shellcheck source=lib/build.sh
source "$SCRIPTS_DIR/lib/build.sh"
# shellcheck source=lib/preflight.sh
source "$SCRIPTS_DIR/lib/preflight.sh"
# shellcheck source=lib/process.sh
source "$SCRIPTS_DIR/lib/process.sh"
# shellcheck source=lib/docker.sh
source "$SCRIPTS_DIR/lib/docker.sh"
# shellcheck source=lib/api.sh
source "$SCRIPTS_DIR/lib/api.sh"
