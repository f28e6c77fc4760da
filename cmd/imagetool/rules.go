package main

import (
	"fmt"
	"io"
	"maps"
	"path"
	"slices"
	"strings"

	"instantenv/internal/secrets"
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
	"daemon-identity": "a daemon's id or key from the builder: its copies would be one and the same to whoever counts or trusts them",
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
	"named-secret":    "a value that its name calls a secret and that looks like one, for everyone who can launch the image",
	"token":           "a stored password or token of a service, for everyone who can launch the image",
	"url-password":    "a URL with a password, for everyone who can launch the image",
	"world-writable":  "a file or directory that every account and service may change",
}

// pathRule judges files by their place in the image: a pattern of path.Match, with * only. Without a
// slash it is for the base name anywhere, behind "**/" for the end of a path, and before "/**" for
// everything below. judge gets the content of a regular file, and nil for anything else. source is the tool or the manual
// that puts such a file there.
type pathRule struct {
	name    string
	pattern string
	judge   func(content []byte) (detail string, found bool)
	source  string
}

func pathRules(allowedUsers []string) []pathRule {
	rules := []pathRule{
		{"host-key", "etc/ssh/ssh_host_*", notEmpty, "sshd(8)"},
		{"host-key", "etc/dropbear/*_host_key", notEmpty, "dropbear(8)"},
		{"root-account", "etc/passwd", judgeRootAccounts, "passwd(5)"},
		{"system-account", "etc/passwd", func(content []byte) (string, bool) {
			return judgeSystemAccounts(content, allowedUsers)
		}, "passwd(5)"},
		{"machine-id", "etc/machine-id", judgeMachineID, "machine-id(5)"},
		{"machine-id", "var/lib/dbus/machine-id", judgeMachineID, "machine-id(5)"},
		{"random-seed", "var/lib/systemd/random-seed", notEmpty, "systemd-random-seed.service(8)"},
		{"host-key", "var/lib/systemd/credential.secret", notEmpty, "systemd-creds(1)"},
		{"hostname", "etc/hostname", judgeHostname, "hostname(5)"},
		{"resolver", "etc/resolv.conf", holdsLines, "resolv.conf(5)"},
		{"lease", "var/lib/dhcp/*", notEmpty, "dhclient(8)"},
		{"lease", "var/lib/dhclient/*", notEmpty, "dhclient(8)"},
		{"lease", "var/lib/NetworkManager/*.lease", notEmpty, "NetworkManager(8)"},
		{"lease", "var/lib/systemd/network/**", notEmpty, "systemd-networkd.service(8)"},
		{"cloud-init", "var/lib/cloud/instance", exists, "cloud-init"},
		{"cloud-init", "var/lib/cloud/instances/*", exists, "cloud-init"},
		{"cloud-init", "var/lib/cloud/data/*", notEmpty, "cloud-init"},
		{"cloud-init", "var/lib/cloud/seed/**", notEmpty, "cloud-init"},
		{"log", "var/log/**", notZeros, "file-hierarchy(7)"},
		{"log", "var/mail/*", notEmpty, "mail(1)"},
		{"log", "var/spool/mail/*", notEmpty, "mail(1)"},
		{"package-cache", "var/cache/apt/*.bin", notEmpty, "apt-get(8)"},
		{"package-cache", "var/cache/apt/archives/*.deb", notEmpty, "apt-get(8)"},
		{"package-cache", "var/lib/apt/lists/*", notEmpty, "apt-get(8)"},
		{"package-cache", "var/cache/dnf/**", notEmpty, "dnf(8)"},
		{"package-cache", "var/cache/libdnf5/**", notEmpty, "dnf(8)"},
		{"package-cache", "var/cache/yum/**", notEmpty, "yum(8)"},
		{"package-cache", "var/lib/dnf/history*", notEmpty, "dnf(8)"},
		{"bake-leftover", "instant-bake*", exists, "instant-env's bake"},
		{"bake-leftover", "*.instant-bake", exists, "instant-env's bake"},
		{"bake-leftover", "etc/kernel/install.d/50-dracut.install", exists, "instant-env's bake"},
		{"bake-leftover", "run/**", notEmpty, "file-hierarchy(7)"},
		{"bake-leftover", "tmp/**", notEmpty, "file-hierarchy(7)"},
		{"bake-leftover", "var/tmp/**", notEmpty, "file-hierarchy(7)"},
	}
	for _, p := range credentialPlaces {
		rules = append(rules, p.rules()...)
	}
	if len(allowedUsers) > 0 {
		rules = append(rules, pathRule{"account", "etc/passwd", func(content []byte) (string, bool) {
			return judgeAccounts(content, allowedUsers)
		}, "passwd(5)"})
	}
	return rules
}

// matches tells whether the pattern is for that path.
func (r pathRule) matches(name string) bool {
	if below, ok := strings.CutSuffix(r.pattern, "**"); ok {
		return matchesStart(below, name)
	}
	if end, ok := strings.CutPrefix(r.pattern, "**/"); ok {
		// As many components as the pattern has, from the end.
		for count := strings.Count(name, "/") - strings.Count(end, "/"); count > 0; count-- {
			_, name, _ = strings.Cut(name, "/")
		}
		return matchesAll(end, name)
	}
	if !strings.Contains(r.pattern, "/") {
		name = name[strings.LastIndexByte(name, '/')+1:]
	}
	return matchesAll(r.pattern, name)
}

// matchesAll is called for every path in the image, so it compares the fixed start and end of a pattern first.
func matchesAll(pattern, name string) bool {
	first := strings.IndexByte(pattern, '*')
	if first < 0 {
		return pattern == name
	}
	if !strings.HasPrefix(name, pattern[:first]) || !strings.HasSuffix(name, pattern[strings.LastIndexByte(pattern, '*')+1:]) {
		return false
	}
	matched, err := path.Match(pattern, name)
	return err == nil && matched
}

// matchesStart: below ends in a slash; a * in it is for one component.
func matchesStart(below, name string) bool {
	if !strings.Contains(below, "*") {
		return strings.HasPrefix(name, below)
	}
	depth := strings.Count(below, "/")
	parts := strings.SplitN(name, "/", depth+1)
	return len(parts) > depth && matchesAll(below, strings.Join(parts[:depth], "/")+"/")
}

// ruleIndex finds the rules for a path without a look at each: those of one name by that, those below a directory at the
// top by that.
type ruleIndex struct {
	byName map[string][]pathRule
	below  map[string][]pathRule
	others []pathRule
}

func newRuleIndex(rules []pathRule) *ruleIndex {
	index := &ruleIndex{byName: map[string][]pathRule{}, below: map[string][]pathRule{}}
	for _, rule := range rules {
		base := rule.pattern[strings.LastIndexByte(rule.pattern, '/')+1:]
		top, _, nested := strings.Cut(rule.pattern, "/")
		switch {
		case !strings.Contains(base, "*"):
			index.byName[base] = append(index.byName[base], rule)
		case nested && !strings.Contains(top, "*"):
			index.below[top] = append(index.below[top], rule)
		default:
			index.others = append(index.others, rule)
		}
	}
	return index
}

// matching returns the rules for a path.
func (x *ruleIndex) matching(name string) (rules []pathRule) {
	base := name[strings.LastIndexByte(name, '/')+1:]
	top, _, _ := strings.Cut(name, "/")
	for _, group := range [][]pathRule{x.byName[base], x.below[top], x.others} {
		for _, rule := range group {
			if rule.matches(name) {
				rules = append(rules, rule)
			}
		}
	}
	return rules
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

// printRules writes the tables of docs/audit.md: each rule, where it looks, and why; which places come from where; and
// which kinds of secrets are known by what.
func printRules(out io.Writer) error {
	var text strings.Builder
	everyByte := []string{"every byte"}
	places := map[string][]string{
		"private-key":     everyByte,
		"aws-credentials": everyByte,
		"forbidden":       everyByte,
		"named-secret":    everyByte,
		"token":           everyByte,
		"url-password":    everyByte,
		"capability":      {"`security.capability` of files"},
		"setuid":          {"modes of files"},
		"world-writable":  {"modes of files and directories"},
		"device-node":     {"types of files"},
	}
	sources := map[string][]string{}
	for _, rule := range pathRules([]string{""}) {
		pattern := "`" + rule.pattern + "`"
		places[rule.name] = appendNew(places[rule.name], pattern)
		key := rule.name + " | " + rule.source
		sources[key] = appendNew(sources[key], pattern)
	}
	fmt.Fprint(&text, "| finding | looked for in | why it must not be there |\n|---|---|---|\n")
	for _, name := range slices.Sorted(maps.Keys(reasons)) {
		where := places[name]
		if len(where) > maxListedPlaces {
			where = append(slices.Clone(where[:1]), fmt.Sprintf("%d more (below)", len(where)-1))
		}
		fmt.Fprintf(&text, "| %s | %s | %s |\n", name, strings.Join(where, ", "), reasons[name])
	}
	fmt.Fprint(&text, "\n| finding | source | places |\n|---|---|---|\n")
	for _, key := range slices.Sorted(maps.Keys(sources)) {
		fmt.Fprintf(&text, "| %s | %s |\n", key, strings.Join(sources[key], ", "))
	}
	fmt.Fprint(&text, "\n| secret | known by | source |\n|---|---|---|\n")
	for _, kind := range secrets.Kinds() {
		fmt.Fprintf(&text, "| %s | %s | %s |\n", kind.Name, kind.Mark, kind.Source)
	}
	_, err := io.WriteString(out, text.String())
	return err
}

// maxListedPlaces keeps the first table readable.
const maxListedPlaces = 8

func appendNew(list []string, text string) []string {
	if slices.Contains(list, text) {
		return list
	}
	return append(list, text)
}
