package main

import (
	"fmt"
	"io"
	"maps"
	"path"
	"slices"
	"strings"
)

// Files that path rules read are small text files; the content rules cover the rest of a larger one.
const maxJudgedBytes = 1 << 20

// reasons maps every rule to why its findings must not be in an image that others boot. docs/audit.md has the table.
var reasons = map[string]string{
	"account":         "an account that people can log in to, besides the login user: a builder's, or a stranger's",
	"authorized-keys": "whoever has that key can log in to every machine of the image; keys come from the metadata service at boot",
	"aws-credentials": "credentials of an AWS account, for everyone who can launch the image",
	"bake-leftover":   "the bake's own files, or what it left in directories for temporary ones",
	"capability":      "a program that gets privileges whoever starts it, and not as a distribution ships it",
	"cloud-agent":     "an agent's registration of the builder: its copies would report as the same machine",
	"cloud-init":      "data of the builder's launch: its user data, and an instance id that makes cloud-init skip a first boot",
	"device-node":     "a device outside of /dev gives whoever may open it the disk or the memory",
	"forbidden":       "a text that the bake said must not be there, such as the key it logged in with",
	"history":         "what was typed on the builder, secrets on command lines included",
	"host-key":        "every machine of the image would prove itself with the same key, and whoever has the image has it",
	"hostname":        "the builder's name, on every machine until something sets another",
	"lease":           "the builder's address, which a machine of the image might ask for",
	"log":             "what happened on the builder: addresses, names, and whatever a program wrote",
	"machine-id":      "machines that take themselves for one another: DHCP, journals and telemetry go by it",
	"package-cache":   "bytes in every snapshot that nobody reads again, or the history of one builder's transactions",
	"password":        "a password, or none needed, that is the same on every machine of the image",
	"private-key":     "a private key with its body, for everyone who can launch the image",
	"random-seed":     "the same seed on every machine; and systemd credits one as entropy where it is told to",
	"resolver":        "name servers of the builder's network, asked until DHCP gives others",
	"root-account":    "a second account with root's user id, which a check of root alone misses",
	"setuid":          "a program that runs as somebody else for whoever starts it, and is none of those that distributions ship so",
	"system-account":  "a service's account with a login shell, open to logins that nobody expects",
	"token":           "a stored password or token of a service, for everyone who can launch the image",
	"world-writable":  "a file or directory that every account and service may change",
}

// pathRule judges files by their place in the image: a pattern of path.Match, with * only. Without a
// slash it is for the base name anywhere, behind "**/" for the end of a path, and before "/**" for
// everything below. judge gets the content of a regular file, and nil for anything else.
type pathRule struct {
	name    string
	pattern string
	judge   func(content []byte) (detail string, found bool)
}

func pathRules(allowedUsers []string) []pathRule {
	rules := []pathRule{
		{"host-key", "etc/ssh/ssh_host_*", notEmpty},
		{"host-key", "etc/dropbear/*_host_key", notEmpty},
		{"authorized-keys", "authorized_keys", holdsLines},
		{"authorized-keys", "authorized_keys2", holdsLines},
		{"password", "etc/shadow", judgeShadow},
		{"password", "etc/shadow-", judgeShadow},
		{"password", "etc/passwd", judgePasswd},
		{"password", "etc/passwd-", judgePasswd},
		{"password", "etc/gshadow", judgeGroupShadow},
		{"root-account", "etc/passwd", judgeRootAccounts},
		{"system-account", "etc/passwd", func(content []byte) (string, bool) {
			return judgeSystemAccounts(content, allowedUsers)
		}},
		{"token", "**/.aws/credentials", notEmpty},
		{"token", "**/.docker/config.json", holds(`"auth"`, `"identitytoken"`)},
		{"token", "**/.config/gh/hosts.yml", holds("oauth_token")},
		{"token", "**/.cargo/credentials.toml", notEmpty},
		{"token", "**/.cargo/credentials", notEmpty},
		{"token", "**/.kube/config", holds("token:", "client-key-data:", "password:")},
		{"token", ".git-credentials", notEmpty},
		{"token", ".netrc", holds("password")},
		{"token", ".npmrc", holds("_auth")},
		{"token", ".pypirc", holds("password")},
		{"token", ".pgpass", holdsLines},
		{"history", ".*_history", notEmpty},
		{"history", ".lesshst", notEmpty},
		{"history", ".viminfo", notEmpty},
		{"machine-id", "etc/machine-id", judgeMachineID},
		{"machine-id", "var/lib/dbus/machine-id", judgeMachineID},
		{"random-seed", "var/lib/systemd/random-seed", notEmpty},
		{"host-key", "var/lib/systemd/credential.secret", notEmpty},
		{"hostname", "etc/hostname", judgeHostname},
		{"resolver", "etc/resolv.conf", holdsLines},
		{"lease", "var/lib/dhcp/*", notEmpty},
		{"lease", "var/lib/dhclient/*", notEmpty},
		{"lease", "var/lib/NetworkManager/*.lease", notEmpty},
		{"lease", "var/lib/systemd/network/**", notEmpty},
		{"cloud-init", "var/lib/cloud/instance", exists},
		{"cloud-init", "var/lib/cloud/instances/*", exists},
		{"cloud-init", "var/lib/cloud/data/*", notEmpty},
		{"cloud-init", "var/lib/cloud/seed/**", notEmpty},
		{"cloud-agent", "var/lib/amazon/ssm/**", notEmpty},
		{"log", "var/log/**", notZeros},
		{"log", "var/mail/*", notEmpty},
		{"log", "var/spool/mail/*", notEmpty},
		{"package-cache", "var/cache/apt/*.bin", notEmpty},
		{"package-cache", "var/cache/apt/archives/*.deb", notEmpty},
		{"package-cache", "var/lib/apt/lists/*", notEmpty},
		{"package-cache", "var/cache/dnf/**", notEmpty},
		{"package-cache", "var/cache/libdnf5/**", notEmpty},
		{"package-cache", "var/cache/yum/**", notEmpty},
		{"package-cache", "var/lib/dnf/history*", notEmpty},
		{"bake-leftover", "instant-bake*", exists},
		{"bake-leftover", "*.instant-bake", exists},
		{"bake-leftover", "etc/kernel/install.d/50-dracut.install", exists},
		{"bake-leftover", "run/**", notEmpty},
		{"bake-leftover", "tmp/**", notEmpty},
		{"bake-leftover", "var/tmp/**", notEmpty},
	}
	if len(allowedUsers) > 0 {
		rules = append(rules, pathRule{"account", "etc/passwd", func(content []byte) (string, bool) {
			return judgeAccounts(content, allowedUsers)
		}})
	}
	return rules
}

// matches is called for every path in the image, so it compares the fixed start of a pattern first.
func (r pathRule) matches(name string) bool {
	if below, ok := strings.CutSuffix(r.pattern, "**"); ok {
		return strings.HasPrefix(name, below)
	}
	if end, ok := strings.CutPrefix(r.pattern, "**"); ok {
		return strings.HasSuffix(name, end) || name == end[1:]
	}
	if !strings.Contains(r.pattern, "/") {
		name = name[strings.LastIndexByte(name, '/')+1:]
	}
	fixed, _, wild := strings.Cut(r.pattern, "*")
	if !wild {
		return name == fixed
	}
	if !strings.HasPrefix(name, fixed) {
		return false
	}
	matched, err := path.Match(r.pattern, name)
	return err == nil && matched
}

const (
	setID         = 0o6000
	worldWritable = 0o0002
	sticky        = 0o1000
)

// setIDPrograms is what Debian 12 and Enterprise Linux 9 ship with setuid or setgid, as far as an image for
// servers has it; for Amazon Linux 2023 the latter stands in.
var setIDPrograms = []string{
	"/usr/bin/at", "/usr/bin/chage", "/usr/bin/chfn", "/usr/bin/chsh", "/usr/bin/crontab", "/usr/bin/dotlockfile",
	"/usr/bin/expiry", "/usr/bin/fusermount", "/usr/bin/fusermount3", "/usr/bin/gpasswd", "/usr/bin/mount",
	"/usr/bin/newgrp", "/usr/bin/newgidmap", "/usr/bin/newuidmap", "/usr/bin/ntfs-3g", "/usr/bin/passwd",
	"/usr/bin/pkexec", "/usr/bin/ssh-agent", "/usr/bin/staprun", "/usr/bin/su", "/usr/bin/sudo", "/usr/bin/umount",
	"/usr/bin/wall", "/usr/bin/write", "/usr/bin/write.ul",
	"/usr/lib/dbus-1.0/dbus-daemon-launch-helper", "/usr/lib/openssh/ssh-keysign",
	"/usr/lib/polkit-1/polkit-agent-helper-1", "/usr/libexec/dbus-1/dbus-daemon-launch-helper",
	"/usr/libexec/openssh/ssh-keysign", "/usr/libexec/utempter/utempter", "/usr/lib/x86_64-linux-gnu/utempter/utempter",
	"/usr/lib/aarch64-linux-gnu/utempter/utempter", "/usr/sbin/grub2-set-bootflag", "/usr/sbin/mount.nfs",
	"/usr/sbin/pam_extrausers_chkpwd", "/usr/sbin/pam_timestamp_check", "/usr/sbin/unix_chkpwd",
	"/usr/sbin/userhelper", "/usr/sbin/usernetctl",
}

var shippedSetID = func() map[string]bool {
	paths := map[string]bool{}
	for _, path := range setIDPrograms {
		paths[path] = true
	}
	return paths
}()

// modeRules judges modes and capabilities, except for the paths that the caller allows: single ones, and all below
// some directories.
type modeRules struct {
	allowed map[string]bool // of the caller
	below   []string
}

func newModeRules(allowed []string) modeRules {
	rules := modeRules{allowed: map[string]bool{}}
	for _, path := range allowed {
		if directory, ok := strings.CutSuffix(path, "**"); ok {
			rules.below = append(rules.below, directory)
		} else {
			rules.allowed[path] = true
		}
	}
	return rules
}

// allows reports whether a path may have any mode.
func (m modeRules) allows(path string) bool { return m.exempts(path) || shippedSetID[path] }

// exempts reports whether the caller named the path, or a directory above it.
func (m modeRules) exempts(path string) bool {
	return m.allowed[path] || slices.ContainsFunc(m.below, func(directory string) bool {
		return strings.HasPrefix(path, directory)
	})
}

// judge returns the rule that a mode breaks; path begins with a slash. Links have no mode of their own, and the
// sticky bit makes a world-writable directory safe.
func (m modeRules) judge(path string, mode uint32, directory bool) (rule, detail string) {
	switch {
	case !directory && mode&setID != 0 && !m.allows(path):
		return "setuid", fmt.Sprintf("mode %04o", mode&0o7777)
	case mode&worldWritable != 0 && !(directory && mode&sticky != 0) && !m.allows(path):
		return "world-writable", fmt.Sprintf("mode %04o", mode&0o7777)
	}
	return "", ""
}

// printRules writes the table of docs/audit.md: each rule, where it looks, and why.
func printRules(out io.Writer) error {
	places := map[string][]string{
		"private-key":     {"every byte"},
		"aws-credentials": {"every byte"},
		"forbidden":       {"every byte"},
		"token":           {"every byte (GitHub's)"},
		"capability":      {"`security.capability` of files"},
		"setuid":          {"modes of files"},
		"world-writable":  {"modes of files and directories"},
		"device-node":     {"types of files"},
	}
	for _, rule := range pathRules([]string{""}) {
		if pattern := "`" + rule.pattern + "`"; !slices.Contains(places[rule.name], pattern) {
			places[rule.name] = append(places[rule.name], pattern)
		}
	}
	fmt.Fprint(out, "| finding | looked for in | why it must not be there |\n|---|---|---|\n")
	for _, name := range slices.Sorted(maps.Keys(reasons)) {
		if _, err := fmt.Fprintf(out, "| %s | %s | %s |\n", name, strings.Join(places[name], ", "), reasons[name]); err != nil {
			return err
		}
	}
	return nil
}
