"""Process 1 and the processes of its machine: orphans, sshd, services."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from init_guest import console, start, stop, wait_for_line, wait_until, write_file

if TYPE_CHECKING:
    from tiny_cloud import Guest, TinyCloud

pytest_plugins = ("tiny_cloud",)
pytestmark = [pytest.mark.boot, pytest.mark.slow, pytest.mark.timeout(600)]

ORPHANS = 10_000
ZOMBIES = "grep -l '^[0-9]* (.*) Z' /proc/[0-9]*/stat 2>/dev/null | wc -l"
LISTENER = "for p in $(pidof sshd); do [ $(awk '{print $4}' /proc/$p/stat) = 1 ] && echo $p; done | head -n 1"

#: Scripts of services: each tells in a file on the disk when it was stopped.
POLITE = """#!/bin/sh
echo "$0 is up"
sleep 4711 &
trap "echo $(basename $0) >>/root/stopped; exit 0" TERM
while :; do sleep 0.1; done
"""
STUBBORN = "#!/bin/sh\ntrap '' TERM HUP\nwhile :; do sleep 0.1; done\n"
#: Ends, and leaves a child that is not to outlive it.
FLAKY = "#!/bin/sh\nsleep 815 &\necho I give up\nexit 3\n"
CHATTY = "#!/bin/sh\nyes 'all work and no play' | head -n 40000\nexec sleep 99\n"

SERVICES = {
    "base": {"argv": ["/root/base"]},
    # Its name sorts before the one that it needs.
    "above": {"argv": ["/root/above"], "after": ["base"], "environment": {"WORD": "two words"}},
    "wanted": {"argv": ["/root/wanted"], "start": "named"},
    "unwanted": {"argv": ["/root/unwanted"], "start": "named"},
    "stubborn": {"argv": ["/root/stubborn"]},
    "flaky": {"argv": ["/root/flaky"]},
    "chatty": {"argv": ["/root/chatty"]},
}


def processes(guest: Guest, words: str) -> int:
    return int(guest.run(f"ps -o args | grep -cFx '{words}'; true"))


def test_orphans_and_a_killed_sshd(tiny_cloud: TinyCloud) -> None:
    instance_id = tiny_cloud.launch_tiny()
    guest = tiny_cloud.login(instance_id)

    guest.run(f"i=0; while [ $i -lt {ORPHANS} ]; do (: &); i=$((i+1)); done", timeout_s=400)
    wait_until(guest, f"[ $({ZOMBIES}) = 0 ]")
    assert int(guest.run("sh -c 'echo $$'")) > ORPHANS

    # This session outlives each of its servers, and a new one is let in.
    for _ in range(5):
        listener = guest.run(LISTENER)
        guest.run(f"kill -KILL {listener}")
        wait_until(guest, f'new=$({LISTENER}); [ -n "$new" ] && [ "$new" != {listener} ]')
    assert tiny_cloud.login(instance_id).run("echo back") == "back"
    for pause in ("100ms", "200ms", "400ms", "800ms", "1.6s"):
        wait_for_line(tiny_cloud, instance_id, f"sshd ended: signal: killed; starting it again in {pause}")

    # What dockerd wants: a writable hierarchy with all controllers delegated, and process 1 not in its root.
    wait_until(guest, "grep -q '^0::/instant-init$' /proc/1/cgroup")
    assert guest.run("cat /proc/self/cgroup") == "0::/services/sshd"
    delegated = set(guest.run("cat /sys/fs/cgroup/cgroup.subtree_control").split())
    assert delegated == set(guest.run("cat /sys/fs/cgroup/cgroup.controllers").split())
    assert {"cpu", "cpuset", "io", "memory", "pids"} <= delegated
    assert "nsdelegate" in guest.run("grep cgroup2 /proc/mounts")
    guest.run("mkdir -p /sys/fs/cgroup/docker/container && test -e /sys/fs/cgroup/docker/memory.max")
    assert "shared:" in guest.run("grep ' / / ' /proc/self/mountinfo")
    assert guest.run("instant-init 2>&1; echo $?").endswith("2"), "by hand it explains itself"


def test_services(tiny_cloud: TinyCloud) -> None:
    wishes = {"instant-env": {"services": ["wanted", "absent"]}}
    instance_id = tiny_cloud.launch_tiny(UserData=json.dumps(wishes))
    guest = tiny_cloud.login(instance_id)
    for name, declaration in SERVICES.items():
        write_file(guest, f"/etc/instant-init/services/{name}.json", json.dumps(declaration))
        script = {"stubborn": STUBBORN, "flaky": FLAKY, "chatty": CHATTY}.get(name, POLITE)
        write_file(guest, f"/root/{name}", script, "0755")
    write_file(guest, "/etc/instant-init/services/broken.json", "{")
    stop(tiny_cloud, instance_id)

    guest = start(tiny_cloud, instance_id)
    for name in ("base", "above", "wanted"):
        wait_until(guest, f"grep -q ' /root/{name} is up$' /run/instant-init/log/{name}.log")
    wait_for_line(tiny_cloud, instance_id, r"services: /etc/instant-init/services/broken\.json: ")
    wait_for_line(tiny_cloud, instance_id, r'services: user data: there is no service "absent"')
    assert processes(guest, "{unwanted} /bin/sh /root/unwanted") == 0
    assert guest.status("ls /run/instant-init/log/unwanted.log") != 0
    above = guest.run("head -n 1 /sys/fs/cgroup/services/above/cgroup.procs")
    assert "WORD=two words" in guest.run(f"tr '\\0' '\\n' </proc/{above}/environ")
    start_time = "awk '{print $22}' /proc/$(head -n 1 /sys/fs/cgroup/services/%s/cgroup.procs)/stat"
    assert int(guest.run(start_time % "base")) <= int(guest.run(start_time % "above"))

    # Started again and again, with what it left behind gone each time.
    ended = r"flaky ended: status 3; starting it again in 3\.2s; its last words: I give up"
    wait_for_line(tiny_cloud, instance_id, ended)
    assert processes(guest, "sleep 815") <= 1
    # A log has its limit.
    wait_until(guest, "[ -f /run/instant-init/log/chatty.log.1 ]")
    assert int(guest.run("cat /run/instant-init/log/chatty.log* | wc -c")) < 600_000
    assert "all work" not in console(tiny_cloud, instance_id)

    # Down in reverse, and one that will not is killed.
    said = stop(tiny_cloud, instance_id)
    assert "stubborn does not end: killing it" in said, said
    guest = start(tiny_cloud, instance_id)
    assert guest.run("cat /root/stopped").split("\n")[-3:] == ["wanted", "above", "base"]
