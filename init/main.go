/*
Instant-init is the first process of a machine that exists to be logged into by SSH, at once.

	instant-init              as process 1: boot to sshd, then look after it
	instant-init key-agent    under another init: install the SSH key that EC2 has for this machine
	instant-init login-keys USER
	                          for sshd: print the keys that were handed over to this machine while it runs
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
	/run/instant-init/timeline.json   marks in milliseconds of CLOCK_BOOTTIME

# Exit status

0 on success, 1 when the key agent failed or the metadata service did not answer login-keys, 2 when it was called the wrong way. Process 1 does not exit.
*/
package main

import (
	"fmt"
	"io"
	"os"

	"instantenv/init/internal/imds"
)

const version = "0.1.0"

func main() { os.Exit(run(os.Args[1:], os.Getpid(), os.Stdout, os.Stderr)) }

// run is the program; pid decides whether it is the machine's init, which takes no arguments: what the kernel
// passes on are words of its command line that it did not know.
func run(args []string, pid int, stdout, stderr io.Writer) int {
	if pid == 1 {
		boot()
	}
	if len(args) == 2 && args[0] == "login-keys" {
		return printLoginKeys(args[1], stdout, stderr)
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
		"By hand: instant-init key-agent | login-keys USER | timeline | --version")
	return 2
}

// printLoginKeys reads who the login user is and leaves the rest to loginKeys.
func printLoginKeys(user string, stdout, stderr io.Writer) int {
	settings, err := loadConfig(configFile)
	if err != nil {
		fmt.Fprintln(stderr, "instant-init:", err)
		return 1
	}
	return loginKeys(user, settings.LoginUser, heldKeys, imds.New(imds.Default), stdout, stderr)
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
