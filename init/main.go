/*
Instant-init is the first process of a machine that exists to be logged into by SSH, at once.

	instant-init              as process 1: boot to sshd, then look after it
	instant-init key-agent    under another init: install the SSH key that EC2 has for this machine
	instant-init timeline     print when what happened in this boot, as JSON
	instant-init --version

# As process 1

Started by the kernel (init=/usr/sbin/instant-init), it mounts the kernel's file systems, loads the modules of the
network interfaces when none is there, obtains an address by DHCP, fetches the public key that was named at launch
from the instance metadata service (IMDSv2), adds it to authorized_keys of the login user, makes SSH host keys if
there are none, and starts sshd. No shell and no other program but sshd is run. What does not depend on each
other runs at the same time.

Then it stays: it restarts sshd when that ends, reaps orphans, and powers the machine off in order when it gets
SIGTERM or SIGPWR, when the power button is pressed (EC2's StopInstances), or when the machine's time is up. On SIGINT,
which is what Ctrl-Alt-Del comes as (EC2's RebootInstances), it restarts the machine in the same order. An error that leaves the machine without a login is printed on the console, and the machine is powered off
ten seconds later: a machine that nobody can reach should not be paid for.

User data may limit the life of the machine, counted from the start of the kernel:

	{"instant-env": {"ttl_s": 3600}}

Of the image it asks: the root file system is named to the kernel, which mounts it; /dev on it has the nodes console
and null unless the kernel mounts devtmpfs by itself (CONFIG_DEVTMPFS_MOUNT), because the Go runtime needs them
before main; the login user exists; sshd is installed. /etc/fstab is not read.

# As key agent

For images that keep their init. It waits until the metadata service answers, does the same with key, host keys and
time limit (by a timer of systemd), and exits 0. A unit for it:

	[Unit]
	Before=ssh.service sshd.service
	[Service]
	Type=notify
	ExecStart=/usr/sbin/instant-init key-agent
	[Install]
	WantedBy=multi-user.target

With Type=notify the unit counts as started when the key is written; with Type=oneshot when all is done.

# Files

	/etc/instant-init.json            {"login_user": "admin", "sshd": "/usr/sbin/sshd"}; both may be left out,
	                                  the defaults are ec2-user and /usr/sbin/sshd
	/run/instant-init/timeline.json   marks in milliseconds of CLOCK_BOOTTIME

# Exit status

0 on success, 1 when the key agent failed, 2 when it was called the wrong way. Process 1 does not exit.
*/
package main

import (
	"fmt"
	"io"
	"os"
)

const version = "0.1.0"

func main() { os.Exit(run(os.Args[1:], os.Getpid(), os.Stdout, os.Stderr)) }

// run is the program; pid decides whether it is the machine's init, which takes no arguments: what the kernel
// passes on are words of its command line that it did not know.
func run(args []string, pid int, stdout, stderr io.Writer) int {
	if pid == 1 {
		boot()
	}
	if len(args) != 1 {
		return usage(stderr)
	}
	switch args[0] {
	case "key-agent":
		return keyAgent(&logger{journal: stderr})
	case "timeline":
		return printTimeline(timelineFile, stdout, stderr)
	case "--version":
		fmt.Fprintln(stdout, "instant-init", version)
		return 0
	}
	return usage(stderr)
}

func usage(stderr io.Writer) int {
	fmt.Fprintln(stderr, "instant-init is the first process of a machine: the kernel starts it (init=/usr/sbin/instant-init).\n"+
		"By hand: instant-init key-agent | timeline | --version")
	return 2
}

func printTimeline(path string, stdout, stderr io.Writer) int {
	text, err := os.ReadFile(path)
	if err != nil {
		fmt.Fprintln(stderr, "instant-init: no timeline:", err)
		return 1
	}
	if _, err := stdout.Write(text); err != nil {
		return 1
	}
	return 0
}
