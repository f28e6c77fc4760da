/*
Instant-init is the first process of a machine that exists to be logged into by SSH, at once.

	instant-init              as process 1: boot to sshd, then look after it
	instant-init key-agent    under another init: install the SSH key that EC2 has for this machine
	instant-init login-keys USER
	                          for sshd: print the keys that were handed over to this machine while it runs
	instant-init grow         make the root file system as large as its volume; or the one on the mount point given
	instant-init timeline     print when what happened in this boot, as JSON
	instant-init --version

# As process 1

Started by the kernel (init=/usr/sbin/instant-init), it mounts the kernel's file systems, loads the modules of the
network interfaces when none is there, obtains an address by DHCP, fetches the public key that was named at launch
from the instance metadata service (IMDSv2), adds it to authorized_keys of the login user, makes SSH host keys if
there are none, and starts sshd. No shell and no other program but sshd is run. What does not depend on each
other runs at the same time.

sshd is executed before anything else, even before Go's runtime starts (early), because loading it takes longer than what
it waits for. It does not read its configuration before there are host keys: a write lease holds sshd_config until then.
It listens as soon as it can and accepts nobody before the key is there: whoever connects early waits in the
backlog, and is not turned away. (Its pid file is a FIFO that it cannot open until then, which does not depend on
sshd_config; /run/sshd.pid has the process id afterwards.)

Then it stays: it keeps sshd and the services running, reaps orphans, makes the root file system as large as its
volume, mounts what user data asks for, and goes down in order when it gets SIGTERM or SIGPWR, when the power button is
pressed (EC2's StopInstances), or when the machine's time is up. On SIGINT, which is what Ctrl-Alt-Del comes as (EC2's
RebootInstances), it restarts the machine in the same order.

# Services

A file /etc/instant-init/services/NAME.json declares a program that runs for as long as the machine does:

	{"argv": ["/usr/bin/dockerd"],          the program by its absolute path, and its arguments; it stays in the foreground
	 "environment": {"LANG": "C.UTF-8"},    on top of PATH
	 "start": "named",                      only when user data has its NAME in "services"; "always" is the default
	 "after": ["chrony"],                   services to be started before it, and to be stopped after it
	 "mounts": ["/var/lib/docker"],         mount points on which it waits for a file system
	 "restart": "always"}                   or on-failure, or never

Services start when sshd listens, so none of them delays a login, as root, in a cgroup of their own below
/sys/fs/cgroup/services. One that ends is started again after 100 ms, then after twice as long each time, up to 10 s;
after 30 s without an end it counts as steady. What it left behind ends with it. The console is told the first times, with
the last words; all that it prints is in /run/instant-init/log/NAME.log, which is put aside as NAME.log.1 at 256 KiB. A
declaration that is wrong is told of on the console and left out.

All controllers of cgroup v2 are delegated to the groups below the root, process 1 is in /instant-init, and mounts are
shared: what dockerd asks of its machine. It is done before the first service starts; without services, after the first
login or ten seconds.

# Going down

Services are stopped in the reverse of the order in which they were started: SIGTERM, and SIGKILL after 2 s (4 s for all
of them); then every other process, disks are synced, swap given back and file systems unmounted. Each part has its
limit, and after 9.5 s the power goes off whatever hangs; the console has what did. With nothing stuck it takes tenths of
a second, which the last line on the console tells.

The sleep key (EC2's StopInstances with Hibernate) writes the memory to the partition that the kernel's command line names
as resume=, which is made swap when it is blank; at the next start the kernel goes on from there. Where resume= is a
PARTUUID that no partition has, and the machine was launched to hibernate (the metadata say so), that partition is made at
the first start, as large as the memory, and the root grows up to it and no further. An image without resume= ignores the
key.

# When something is wrong

A root that is read-only or full still lets people in: keys are kept in memory then. Everything else that a login can do
without is told on the console and left. An error that leaves the machine without a login, sshd failing time after time
included, is printed with its cause, memory, disk, network interfaces and the kernel's latest complaints, and the machine
is powered off ten seconds later: a machine that nobody can reach should not be paid for. So is a fault of this program (a
panic), after five minutes when sshd runs. It never restarts a machine by itself: what failed once would fail again.

# Volumes

The last partition of a disk with a GUID partition table is enlarged to its end when it holds the root, with the file system
(ext4 or XFS) in it, after sshd listens. The order of writes is such that the machine starts again wherever it is cut
short. `instant-init grow [MOUNT POINT]` does the same by hand or under another init; the key agent does it, too.

User data names further volumes, by id, by the name of their mapping or by path; each is waited for, formatted only where
it says so and the device has nothing but zeros where anything could be recognised, and mounted:

	{"instant-env": {"mounts": [{"device": "vol-0abc", "path": "/data", "filesystem": "ext4", "format": "blank"}]}}

# User data

With no network, no metadata service or no answer that makes sense it keeps trying and says on the console what it
waits for, after 5 seconds and then every 30. That no key was named at launch is an answer: then the keys in user data
are waited for (10 seconds at most), and sshd starts. So it does where keys of an earlier start are on the disk and the
metadata service has been silent for 10 seconds.

User data may name more keys, limit the life of the machine, and more; see docs/user-data.md. It is read once sshd
runs. What is wrong with it is said on the console and does not stop anything.

	{"instant-env": {"ttl_s": 3600, "ssh_keys": ["ssh-ed25519 AAAA..."]}}

Of the image it asks: the root file system is named to the kernel, which mounts it; /dev on it has the nodes console
and null unless the kernel mounts devtmpfs by itself (CONFIG_DEVTMPFS_MOUNT), because the Go runtime needs them
before main; the login user exists; sshd is installed. /etc/fstab is not read.

# Network

Every Ethernet card is configured by DHCP (IPv4), as soon as the kernel tells of it and beside the others, also one
that is attached to a running machine; the driver of such a card is loaded. What goes is forgotten. IPv6 is left to
the kernel's own configuration, and nothing waits for it. Without a network it keeps trying, and says on the console
what it waits for, after five seconds and then every half minute.

The card with the lowest index comes first: its default route has the lowest metric (a hundred times the index), and
the machine has the host name, search domain and name servers of its lease. "hostname" in user data comes before the
server's. Every other card has a routing table (10000 and its index) that a rule leads packets with its address as
their source to, since EC2 drops what leaves by another card than its own.

The DHCP client repeats a message after 100 ms, 200 ms and so on up to 4 s, with one xid. The server is asked to
renew a lease when half of its time is over, by broadcast when seven eighths are, or when the server says; the lease
is checked at once after hibernation and when a lost link is back. An address has no lifetime in the kernel. It stays
when nobody answers, even when the lease has ended, and when the server refuses it, until there is another one: on EC2
it belongs to the card, and a machine without any can be reached by nobody.

# As key agent

For images that keep their init, which is systemd. It does the same with keys, host keys and time limit, and stays to
watch over the latter. A unit for it:

	[Unit]
	Before=ssh.service sshd.service
	[Service]
	Type=notify
	ExecStart=/usr/sbin/instant-init key-agent
	Restart=on-failure
	TimeoutStartSec=infinity
	[Install]
	WantedBy=multi-user.target

The unit counts as started when the key is written. It reads mounts and services in user data, too, and does nothing
about them: that is systemd's.

# Keys for a machine that runs

A machine that has been running for a while is handed to somebody by EC2 Instance Connect (SendSSHPublicKey, for 60
seconds) or by the tag instant-env:ssh-key (an ed25519 key, for as long as the tag is there; tags in metadata have to be
enabled for the instance). sshd asks for both when somebody offers a key that is not in authorized_keys:

	AuthorizedKeysCommand /usr/sbin/instant-init login-keys %u
	AuthorizedKeysCommandUser nobody

They are not written down anywhere, so they cannot be seen half, and are gone when EC2 has them no more.

# Files

	/etc/instant-init.json            {"login_user": "admin", "sshd": "/usr/sbin/sshd", "ssm_keys": "/team/keys"};
	                                  all may be left out, the defaults are ec2-user and /usr/sbin/sshd.
	                                  ssm_keys names an SSM parameter with SSH keys, for /usr/sbin/instant-ssm
	/etc/instant-init/services/       services, see there; their logs are in /run/instant-init/log/
	/run/instant-init/timeline.json   marks in milliseconds of CLOCK_BOOTTIME; after a sleep there is "resumed",
	                                  and the key's are those of its new hand-over

# Exit status

0 on success, 1 when the key agent failed or the metadata service did not answer login-keys, 2 when it was called the wrong way. Process 1 does not exit.
*/
package main
