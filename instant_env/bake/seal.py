"""The last step of every bake: forget this machine, clear free space, power off.

It runs detached, because it removes the key it was started with and ends the services around it. Free
space is overwritten, because deleted files otherwise survive in the image's raw bytes, which the audit reads.
"""

from __future__ import annotations

import shlex

from instant_env.bake.recipe import Base
from instant_env.launch.cloud_config import EARLY_UNIT, timer_command

#: Printed on the serial console at the very end; its absence after power-off means that the seal failed.
SEALED = "instant-bake: sealed"
#: Printed when it cannot go on.
SEAL_FAILED = "instant-bake: seal failed"
#: What a bake waits for the seal: clearing the free space of an 8 GiB gp3 volume at its 125 MiB/s takes a
#: minute, and emulation may take longer. One that has failed powers off only after that: a stop before it
#: would look like success where the console is late.
SEAL_TIMEOUT_S = 900
#: The timer that the bake arms once it is logged in, beside the one of the builder's user data.
TTL_UNIT = "instant-bake-ttl"
#: The timer of the seal, in place of those two: long enough not to end a seal that somebody waits for.
_SEAL_UNIT = "instant-bake-seal-ttl"
#: What the file systems may take to become read-only. An XFS with 6,000 dirty inodes on a disk of 3,000 IOPS
#: took 2.7 s.
READ_ONLY_TIMEOUT_S = 60

#: Everything here identifies the builder, its user or its run. Globs are the shell's.
_FORGET_FILES = (
    "/etc/ssh/ssh_host_*",
    "/root/.ssh /root/.bash_history /root/.lesshst /root/.viminfo /root/.cache",
    "/home/*/.bash_history /home/*/.lesshst /home/*/.viminfo /home/*/.cache",
    "/home/*/.sudo_as_admin_successful",
    "/var/lib/cloud/instances /var/lib/cloud/instance /var/lib/cloud/data /var/lib/cloud/sem",
    "/var/lib/cloud/seed",
    "/var/log/journal/* /var/lib/amazon/ssm",
    "/var/lib/dhcp/*.leases /var/lib/NetworkManager /var/lib/systemd/random-seed /var/lib/systemd/timers",
    "/var/lib/systemd/credential.secret /var/lib/systemd/network",
    "/var/lib/chrony/* /var/spool/mail/* /var/tmp/* /tmp/*",
    "/etc/.pwd.lock /etc/passwd- /etc/shadow- /etc/group- /etc/gshadow- /etc/subuid- /etc/subgid-",
    # Daemons that ran on the builder: Docker's key (20.10) and id (since 23.0, moby #43555), a swarm's node,
    # containerd's and BuildKit's ids. Each makes its own at the next start.
    "/etc/docker/key.json /var/lib/docker/engine-id /var/lib/docker/swarm",
    "/var/lib/containerd/io.containerd.*introspection*/uuid",
    "/var/lib/docker/containerd/daemon/io.containerd.*introspection*/uuid",
    "/var/lib/buildkit/*/workerid /var/lib/docker/buildkit/*/workerid",
    "/etc/netplan/50-cloud-init.yaml /etc/network/interfaces.d/50-cloud-init",
)


def seal_script(base: Base) -> str:
    """The script, for ``sh``; its output goes to the console."""
    forget = "\n".join(f"rm -rf {paths}" for paths in _FORGET_FILES)
    last_timer = shlex.join(timer_command(_SEAL_UNIT, f"--on-active={3 * SEAL_TIMEOUT_S}s"))
    return f"""#!/bin/sh
# seal: forget this machine, clear free space, power off.
set -eu
exec >/dev/console 2>&1 </dev/null
trap 'echo "{SEAL_FAILED}"; sleep {2 * SEAL_TIMEOUT_S}; systemctl poweroff --force --force' EXIT

# The timers of the bake must not cut this short. Until here they stand, and from here on one of our own, so
# there is no second in which a machine that everybody has left would run on.
{last_timer}
for timer in {TTL_UNIT} {EARLY_UNIT}; do
    systemctl stop "$timer.timer" 2>/dev/null || true  # no cloud-init, no early timer
done

# The key we came by is overwritten in place; nobody logs in after this.
for file in /root/.ssh/authorized_keys /home/*/.ssh/authorized_keys; do
    if [ -f "$file" ]; then shred --remove=unlink "$file"; fi
done
systemctl stop {base.ssh_service}.service || true
# Writers of logs would bring back what we remove.
for unit in systemd-journald.socket systemd-journald-dev-log.socket systemd-journald-audit.socket \\
    systemd-journald.service rsyslog.service cron.service crond.service chrony.service chronyd.service; do
    systemctl stop "$unit" 2>/dev/null || true
done
# Its unit refuses `systemctl stop`; a signal ends it, and it is not started again.
if systemctl --quiet is-active auditd.service 2>/dev/null; then
    systemctl kill auditd.service
    seconds=0
    while systemctl --quiet is-active auditd.service && [ "$seconds" -lt 10 ]; do
        sleep 1
        seconds=$((seconds + 1))
    done
fi
{forget}
# Directories stay: they may belong to a service that does not make its own. (Without /var/log/audit, auditd
# ends, is started again, and so on.)
find /var/log -xdev -type f -delete
if [ -s /etc/machine-id ]; then : >/etc/machine-id; fi
rm -f /var/lib/dbus/machine-id
: >/etc/hostname
if [ ! -L /etc/resolv.conf ]; then : >/etc/resolv.conf; fi
if [ -f /etc/hosts ]; then sed -i '/ip-[0-9-]*\\./d' /etc/hosts; fi

# Freed blocks can be written again only after the journal has committed their release. Both file systems hold
# some blocks back even from root (ext4: 2 % or 16 MiB, XFS: up to 32 MiB), the smallest fragments of free
# space in the end, and it is there that deleted keys were found.
sync
for reserve in /sys/fs/ext4/*/reserved_clusters; do
    if [ -w "$reserve" ]; then echo 0 >"$reserve"; fi
done
if command -v xfs_io >/dev/null; then xfs_io -x -c "resblks 0" / >/dev/null 2>&1 || true; fi
dd if=/dev/zero of=/instant-bake.zero bs=1M 2>/dev/null || true
dd if=/dev/zero of=/instant-bake.zero-rest bs=4096 2>/dev/null || true
sync
rm -f /instant-bake.zero /instant-bake.zero-rest
sync
fstrim / 2>/dev/null || true
# Kernels that break virtio devices before they power off (seen: Debian's 6.1.192) hang where virtio_net then
# reaps what it has just sent.
for nic in /sys/class/net/*/device; do
    nic="${{nic%/device}}"
    ip link set dev "${{nic##*/}}" down || true
done
{power_off_lines()}"""


def power_off_lines() -> str:
    """The end of the script: every file system on a disk becomes read-only, then the power goes.

    The kernel remounts in the background. Until it has, part of what was written is in the journal only,
    which GRUB does not replay (grubby #25, ostree #876, RHBZ 1227736): of an XFS whose remount was not over,
    it read the old boot entry, or an empty one. A file system that stays writable makes no image: then the
    machine says so, and stays.
    """
    return f"""# Straight to the kernel: an orderly shutdown would start writers again.
echo s >/proc/sysrq-trigger
echo u >/proc/sysrq-trigger
seconds=0
until awk '$1 ~ "^/dev/" && $4 ~ "^rw(,|$)" {{ writable = 1 }} END {{ exit writable }}' /proc/mounts; do
    if [ "$seconds" -ge {READ_ONLY_TIMEOUT_S} ]; then
        grep '^/dev/' /proc/mounts || true
        echo "seal: a file system is still writable after $seconds s"
        exit 1
    fi
    sleep 1
    seconds=$((seconds + 1))
done
trap - EXIT
sleep 1  # the kernel's words on it were seen in the middle of ours
echo "{SEALED}"
sleep 1  # until it is out
echo o >/proc/sysrq-trigger
sleep 30
systemctl poweroff --force --force
"""
