#!/bin/sh
# keep-copy.sh DATABASE LINK: runs before every start. When LINK names another release than the last
# start, that release may change the form of the database: a copy is kept as DATABASE.of.RELEASE, named
# after the release that wrote it. The two newest copies stay.
set -eu
umask 077
database=$1
release=$(readlink "$2")
last=$(cat "$database.release" 2>/dev/null || true)
if [ -e "$database" ] && [ -n "$last" ] && [ "$last" != "$release" ]; then
  cp --reflink=auto "$database" "$database.new-copy"
  sync "$database.new-copy"
  mv "$database.new-copy" "$database.of.$last"
  # Names of releases hold no spaces.
  # shellcheck disable=SC2012
  for old in $(ls -t "$database".of.* | tail -n +3); do rm -f "$old"; done
fi
# Its time says when the service was started.
printf '%s\n' "$release" >"$database.release.new"
mv "$database.release.new" "$database.release"
