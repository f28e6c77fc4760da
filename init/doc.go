/*
Instant-init is the first process of a machine that exists to be logged into by SSH, at once.

	instant-init              as process 1: boot to sshd, then look after it
	instant-init key-agent    under another init: install the SSH key that EC2 has for this machine
	instant-init login-keys USER
	                          for sshd: print the keys that were handed to this machine while it runs
	instant-init hand-over    give this machine of a pool to the lessee that standard input names
	instant-init grow         enlarge the root file system, or the one on a given mount point, to its volume
	instant-init timeline     print the times of this boot's stages, as JSON
	instant-init phase NAME running|done|failed [REASON]
	                          record how far a service has come; a failure has a reason, and is put on the console
	instant-init await NAME [SECONDS]
	                          return when a phase is done; status 1 when it failed, or after 80 seconds
	instant-init --version

# As process 1

The kernel starts it (init=/usr/sbin/instant-init). It mounts the kernel's file systems, loads the modules of the network
interfaces if there is no interface yet, obtains an address by DHCP, fetches the public key that was named at launch from
the instance metadata service (IMDSv2), adds it to authorized_keys of the login user, makes SSH host keys if there are
none, and starts sshd. It runs no shell and no program but sshd. Steps that do not depend on each other run at the same
time.

sshd is executed first, before Go's runtime starts (early), because it takes longer to load than the steps that it waits
for. A write lease on sshd_config keeps sshd from reading its configuration before the host keys exist. sshd listens as
soon as it can and accepts connections once the key is installed: a client that connects earlier waits in the backlog and
is not rejected. (The pid file is a FIFO that sshd cannot open until then, whatever sshd_config says; /run/sshd.pid has
the process id afterwards.)

Then process 1 keeps sshd and the services running, reaps orphans, enlarges the root file system to its volume, and
mounts the volumes of user data. It shuts the machine down in order on SIGTERM or SIGPWR, when the power button is pressed
(EC2's StopInstances), or when the machine's time limit is reached. It restarts the machine in the same order on SIGINT,
which the kernel sends for Ctrl-Alt-Del (EC2's RebootInstances).

# Services

A file /etc/instant-init/services/NAME.json declares a program that runs for as long as the machine does:

	{"argv": ["/usr/sbin/dockerd"],         the program by its absolute path, and its arguments; it stays in the foreground
	 "environment": {"LANG": "C.UTF-8"},    on top of PATH
	 "start": "named",                      only when user data has its NAME in "services"; "always" is the default
	 "after": ["chrony"],                   services that start before it and stop after it
	 "mounts": ["/var/lib/docker"],         mount points on which it waits for a file system
	 "restart": "always"}                   or on-failure, or never

Services start once sshd listens, so that none of them delays a login. They run as root, each in its own cgroup below
/sys/fs/cgroup/services. A service that ends is started again after 100 ms; the pause doubles each time, up to 10 s, and
starts afresh after a run of 30 s. Processes that the service left behind are ended with it. The console reports the
first restarts, with the service's last lines. All output goes to /run/instant-init/log/NAME.log, which is renamed to
NAME.log.1 at 256 KiB. An invalid declaration is reported on the console and ignored.

All controllers of cgroup v2 are delegated to the groups below the root, process 1 is in /instant-init, and mounts are
shared, as dockerd requires. This happens before the first service starts or, without services, after the first login or
ten seconds.

# Going down

Services are stopped in the reverse of the order in which they were started: SIGTERM, and SIGKILL after 2 s (4 s for all
of them). Then every other process is ended, disks are synced, swap is switched off and file systems are unmounted. Each
part has a time limit, and after 9.5 s the power goes off whatever hangs; the console names what did. A shutdown in which
nothing hangs takes tenths of a second; the last line on the console has the time.

On the sleep key (EC2's StopInstances with Hibernate) the memory is written to the partition that the kernel's command
line names as resume=, which is formatted as swap if it is blank; at the next start the kernel resumes from it. If resume=
is a PARTUUID that no partition has, and the metadata say that the machine was launched to hibernate, the first start
makes that partition, as large as the memory, and the root grows up to it and no further. An image without resume= ignores
the key.

# When something is wrong

A login works with a read-only or full root: keys are kept in memory then. Every other failure that does not prevent a
login is reported on the console and skipped. A failure that makes logins impossible, including an sshd that keeps
failing, is printed with its cause, the state of memory, disk and network interfaces, and the kernel's latest warnings.
The machine is powered off ten seconds later, because a machine that nobody can reach costs money. The same happens after
a fault of this program (a panic), but after five minutes if sshd runs. The machine never restarts by itself: a failure
would repeat.

# Volumes

If the root is on the last partition of a disk with a GUID partition table, the partition and the file system in it (ext4
or XFS) are enlarged to the end of the disk, after sshd listens. The writes are ordered so that the machine still starts
if it loses power at any point. `instant-init grow [MOUNT POINT]` does the same by hand or under another init, and so does
the key agent.

User data names further volumes, by id, by the name of their mapping or by path. Each is mounted when it is attached. It
is formatted first only if user data asks for it and the device has only zeros where a signature could be. An ext4 that is
there is checked first, by the image's fsck.ext4 -p. The key agent does the same.

	{"instant-env": {"mounts": [{"device": "vol-0abc", "path": "/data", "filesystem": "ext4", "format": "blank",
	                             "owner": "login_user"}]}}

# Progress

/run/instant-env/phases.json has the machine's phases; docs/user-data.md has its format. "user-data" is done when the
settings of user data are in /run/instant-env/settings and the host name is set, "mounted" when all volumes are mounted.
Services add their own by the command phase.

# User data

Without a network, a metadata service or a valid answer it keeps trying, and reports on the console what it waits for,
after 5 seconds and then every 30. If no key was named at launch, it waits up to 10 seconds for the keys in user data and
then lets sshd accept connections. It does the same if keys of an earlier start are on the disk and the metadata service
has not answered for 10 seconds.

Its SSH host keys are printed on the console after the first login, or 10 seconds after sshd serves, between the lines
-----BEGIN SSH HOST KEY KEYS----- and -----END SSH HOST KEY KEYS-----, as cloud-init prints them.

User data may name more keys, set the machine's time limit, and more; see docs/user-data.md. It is read once sshd runs.
Errors in it are reported on the console and stop nothing else.

	{"instant-env": {"ttl_s": 3600, "ssh_keys": ["ssh-ed25519 AAAA..."]}}

The image must meet these conditions: the kernel's command line names the root file system; /dev on it has the nodes
console and null, which the Go runtime needs before main, unless the kernel mounts devtmpfs by itself
(CONFIG_DEVTMPFS_MOUNT); the login user exists; sshd is installed. /etc/fstab is not read.

# Network

Every Ethernet card is configured by DHCP (IPv4) as soon as the kernel reports it, in parallel with the others. This
includes cards that are attached to a running machine, whose drivers are loaded. The configuration of a card is removed
when the card is. IPv6 is left to the kernel's own configuration, and nothing waits for it.

The card with the lowest index is preferred: its default route has the lowest metric (a hundred times the index), and its
lease sets the machine's host name, search domain and name servers. "hostname" in user data overrides the lease's. Every
other card has its own routing table (10000 plus its index), and a rule that sends packets with its address as their
source there, because EC2 drops packets that leave by another card.

The DHCP client repeats a message after 100 ms, 200 ms and so on up to 4 s, with one xid. It renews a lease after half of
its time, and by broadcast after seven eighths, or at the times that the server sets. It checks the lease at once after
hibernation and when a lost link is back. An address has no lifetime in the kernel. It stays if no server answers, even
after the lease has ended, and if the server refuses it, until there is another one: on EC2 the address belongs to the
card, and a machine without one is unreachable.

# As key agent

The key agent is for images that keep systemd as their init. It handles keys, host keys and the time limit in the same
way, and keeps running for the time limit. A unit for it:

	[Unit]
	Before=ssh.service sshd.service
	[Service]
	Type=notify
	ExecStart=/usr/sbin/instant-init key-agent
	Restart=on-failure
	TimeoutStartSec=infinity
	[Install]
	WantedBy=multi-user.target

The unit counts as started when the key is written. Mounts and services in user data are parsed and ignored: they are
systemd's business.

# Keys for a machine that runs

A running machine is handed to a user by EC2 Instance Connect (SendSSHPublicKey, for 60 seconds) or by the tag
instant-env:ssh-key (an ed25519 key, for as long as the tag exists; the instance must have tags in metadata enabled). sshd
asks for both when a client offers a key that is not in authorized_keys:

	AuthorizedKeysCommand /usr/sbin/instant-init login-keys %u
	AuthorizedKeysCommandUser nobody

These keys are not stored anywhere, so they are never seen half-written, and end when EC2 no longer has them.

A machine of a pool is given away for a whole lease by a command that root runs ahead of time, over SSH, and that then waits:

	instant-init hand-over    it says {"version":1,"ready":true}, reads one line, answers with one line, and flushes the disk

	{"version": 1, "lease": "NAME", "public_key": "ssh-ed25519 AAAA...", "expires_at": "2026-12-01T12:00:00Z",
	 "replaces": "2026-12-02T00:00:00Z"}

In one step it writes the mark /var/lib/instant-init/handed-out, makes the key the only one of the login user, and kills all
that runs below every other login by SSH. Connections that have not logged in yet stay. The answer is
{"ok":true,"ended_sessions":2}, the number of processes that were killed, or {"ok":false,"code":"...","lease":"...",
"detail":"..."} with one of these codes:

	handed-out    there is a mark already; "lease" names its lease. This may come in the place of "ready"
	request       the line is longer than 16 KiB, or not such an object
	key           the public key is not one, or has options
	mark          the mark cannot be written
	keys          the mark is there, and authorized_keys cannot be replaced
	sessions      mark and key are there, and a process could not be killed

The mark stays for the life of the disk, and is copied with it: an image of such a machine is of no use. With a mark no other
key is installed again, neither that of the launch nor one from user data, an SSM parameter, Instance Connect or a tag. The
machine's time limit is the mark's expires_at for as long as the tag instant-env:expires-at is missing or still has the value
in "replaces"; with any other value the tag rules. So a caller that dies between the hand-over and the tag leaves no machine
with a pool's long life.

# Files

	/etc/instant-init.json            {"login_user": "admin", "sshd": "/usr/sbin/sshd", "ssm_keys": "/team/keys"};
	                                  each is optional; the defaults are ec2-user and /usr/sbin/sshd.
	                                  ssm_keys names an SSM parameter with SSH keys, for /usr/sbin/instant-ssm
	/etc/instant-init/services/       services (see above); their logs are in /run/instant-init/log/
	/var/lib/instant-init/handed-out  the request of the hand-over, which marks the machine as somebody's
	/run/instant-init/timeline.json   marks in milliseconds of CLOCK_BOOTTIME; after hibernation there is
	                                  "resumed", and the key's marks are those of the latest resume

# Exit status

0 on success; 1 if the key agent failed, or the metadata service did not answer login-keys; 2 for wrong arguments. Process
1 does not exit.
*/
package main
