# shellcheck shell=bash
# A machine inside this one, to install on: a real systemd as process 1 in namespaces of its own, over a
# copy-on-write view of this machine's files. What it changes is in memory and gone when it ends; its
# network is a loopback that leads nowhere.

# Hierarchies of control groups version 1, where the kernel uses them.
NEST_CONTROLLERS=(cpu cpuacct cpuset memory devices freezer blkio pids)
# What would look after real hardware, or be in the way.
NEST_MASKED=(
  systemd-udevd.service systemd-udev-trigger.service systemd-udevd-kernel.socket systemd-udevd-control.socket
  systemd-sysctl.service systemd-modules-load.service systemd-timesyncd.service systemd-remount-fs.service
  systemd-random-seed.service systemd-hwdb-update.service systemd-logind.service getty.target
  dev-hugepages.mount sys-kernel-config.mount sys-kernel-debug.mount sys-kernel-tracing.mount
  apt-daily.timer apt-daily-upgrade.timer e2scrub_all.timer fstrim.timer man-db.timer dpkg-db-backup.timer
  proc-sys-fs-binfmt_misc.automount
)

# nest_start FOLDER: starts it and waits until its services run.
nest_start() {
  NEST="$1"
  NEST_GROUP="crabshack-nest-$$"
  mkdir -p "$NEST"
  nest_groups | while read -r group; do
    mkdir -p "$group"
    [[ ! -e "$group/cpuset.mems" || -s "$group/../cgroup.controllers" ]] ||
      { cat "$group/../cpuset.cpus" >"$group/cpuset.cpus" && cat "$group/../cpuset.mems" >"$group/cpuset.mems"; }
  done
  (
    for group in $(nest_groups); do echo "$BASHPID" >"$group/cgroup.procs"; done
    # shellcheck disable=SC2016
    exec unshare --net --mount --uts --ipc --pid --cgroup --fork --kill-child \
      bash -c 'source "$0" && nest_become "$1"' "$SCRIPTS_DIR/lib/nest.sh" "$NEST"
  ) >"$NEST/log" 2>&1 </dev/null &
  NEST_OUTSIDE=$!
  wait_until 10 nest_find || fail "the machine does not start" "see: $NEST/log"
  wait_until 60 nest_is_up || { nest systemctl list-jobs >&2; fail "the machine does not come up" "see: $NEST/log"; }
}

nest_groups() {
  local controller
  if [[ -e /sys/fs/cgroup/cgroup.controllers ]]; then
    echo "/sys/fs/cgroup/$NEST_GROUP"
    return
  fi
  for controller in "${NEST_CONTROLLERS[@]}" systemd unified; do
    [[ ! -d "/sys/fs/cgroup/$controller" ]] || echo "/sys/fs/cgroup/$controller/$NEST_GROUP"
  done
}

nest_find() {
  NEST_PID="$(pgrep -P "$NEST_OUTSIDE" || true)"
  [[ "$(cat "/proc/$NEST_PID/comm")" == systemd ]]
}

nest_is_up() { nest systemctl is-system-running | grep -qxE 'running|degraded'; }

# nest COMMAND...: runs it in there.
nest() {
  # shellcheck disable=SC2016
  nsenter --target "$NEST_PID" --net --mount --uts --ipc --pid --cgroup --root -- sh -c 'cd / && exec "$@"' sh "$@"
}

# nest_stop: with everything in it.
nest_stop() {
  kill -KILL "$NEST_PID" 2>/dev/null || true
  wait "$NEST_OUTSIDE" 2>/dev/null || true
  # The last processes may still be on their way out.
  wait_until 10 nest_remove_groups || warn "control groups $NEST_GROUP are left"
}

nest_remove_groups() {
  local group
  for group in $(nest_groups); do
    [[ ! -d "$group" ]] || find "$group" -depth -type d -exec rmdir {} +
  done
}

# nest_become FOLDER: turns this process, alone in its namespaces, into process 1 of the machine.
nest_become() {
  local layers="$1/layers" root="$1/root" controller unit number
  set -euo pipefail
  mkdir -p "$layers" "$root"
  mount -t tmpfs -o mode=755 nest "$layers"
  mkdir "$layers/upper" "$layers/work" "$layers/docker"
  mount -t overlay -o "lowerdir=/,upperdir=$layers/upper,workdir=$layers/work" nest "$root"
  # Docker's own layers cannot lie on such a view, and a pool's file must be allocated for real.
  rm -rf "$root/var/lib/docker" "$root/var/lib/crabshack" "$root/etc/crabshack"
  mkdir -p "$root/var/lib/docker" "$root/var/lib/crabshack"
  mount -t tmpfs -o mode=711 nest "$root/var/lib/docker"
  mount -t tmpfs -o mode=755 nest "$root/var/lib/crabshack"
  mount -t proc proc "$root/proc"
  mount -t sysfs sysfs "$root/sys"
  mount -t tmpfs -o mode=755 nest "$root/run"
  mount -t tmpfs nest "$root/tmp"
  nest_devices "$root/dev"
  if [[ -e /sys/fs/cgroup/cgroup.controllers ]]; then
    mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
  else
    mount -t tmpfs -o mode=755 nest "$root/sys/fs/cgroup"
    for controller in "${NEST_CONTROLLERS[@]}"; do
      mkdir "$root/sys/fs/cgroup/$controller"
      mount -t cgroup -o "$controller" cgroup "$root/sys/fs/cgroup/$controller" || rmdir "$root/sys/fs/cgroup/$controller"
    done
    mkdir "$root/sys/fs/cgroup/systemd" "$root/sys/fs/cgroup/unified"
    mount -t cgroup -o none,name=systemd cgroup "$root/sys/fs/cgroup/systemd"
    mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup/unified" || rmdir "$root/sys/fs/cgroup/unified"
  fi
  for unit in "${NEST_MASKED[@]}"; do ln -sf /dev/null "$root/etc/systemd/system/$unit"; done
  : >"$root/etc/fstab"
  # Nobody tells of devices in there, so waiting for one is in vain.
  mkdir -p "$root/etc/systemd/system.conf.d"
  printf '[Manager]\nDefaultDeviceTimeoutSec=1\n' >"$root/etc/systemd/system.conf.d/nest.conf"
  # Two with one identity would be one in the eyes of the journal.
  : >"$root/etc/machine-id"
  # Nothing that this machine has installed beside systemd and Docker.
  find "$root/etc/systemd/system" -mindepth 2 -path '*.wants/*' -not -name 'docker*' -not -name 'containerd*' -delete
  cd "$root"
  mkdir -p mnt/outside
  pivot_root . mnt/outside
  umount -l /mnt/outside
  # As on a real machine: what is mounted for a service comes to be seen by it.
  mount --make-rshared /
  hostname nest
  ip link set lo up
  exec env -i container=nest PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    /lib/systemd/systemd --unit=multi-user.target --log-target=journal
}

# nest_devices FOLDER: the few that a machine without hardware has; loop devices for the pool.
nest_devices() {
  local number
  mount -t tmpfs -o mode=755 nest "$1"
  mkdir "$1/pts" "$1/shm" "$1/mqueue" "$1/mapper"
  mount -t devpts -o newinstance,ptmxmode=666,mode=620 devpts "$1/pts"
  ln -s pts/ptmx "$1/ptmx"
  ln -s /proc/self/fd "$1/fd"
  ln -s /proc/self/fd/0 "$1/stdin"
  ln -s /proc/self/fd/1 "$1/stdout"
  ln -s /proc/self/fd/2 "$1/stderr"
  mknod -m 666 "$1/null" c 1 3
  mknod -m 666 "$1/zero" c 1 5
  mknod -m 666 "$1/full" c 1 7
  mknod -m 666 "$1/random" c 1 8
  mknod -m 666 "$1/urandom" c 1 9
  mknod -m 666 "$1/tty" c 5 0
  mknod -m 600 "$1/loop-control" c 10 237
  mknod -m 600 "$1/btrfs-control" c 10 234
  for number in {0..31}; do mknod -m 660 "$1/loop$number" b 7 "$number"; done
}
