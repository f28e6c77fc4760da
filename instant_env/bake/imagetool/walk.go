package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// A file that a path rule reads is text; a huge one under such a name is a finding by its content rules.
const maxJudgedBytes = 1 << 20

// pathRule judges files by their place in the image. A pattern (path.Match, with * only) without a
// slash is for the base name anywhere. judge gets the content of a regular file, and nil for anything else.
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
		{"history", ".*_history", notEmpty},
		{"history", ".lesshst", notEmpty},
		{"history", ".viminfo", notEmpty},
		{"machine-id", "etc/machine-id", judgeMachineID},
		{"machine-id", "var/lib/dbus/machine-id", judgeMachineID},
		{"random-seed", "var/lib/systemd/random-seed", notEmpty},
		{"cloud-init", "var/lib/cloud/instance", exists},
		{"cloud-init", "var/lib/cloud/instances/*", exists},
		{"cloud-init", "var/lib/cloud/data/*instance-id", notEmpty},
		{"bake-leftover", "tmp/instant-bake*", exists},
		{"bake-leftover", "var/tmp/instant-bake*", exists},
		{"bake-leftover", "root/instant-bake*", exists},
		{"bake-leftover", "home/*/instant-bake*", exists},
	}
	if len(allowedUsers) > 0 {
		rules = append(rules, pathRule{"account", "etc/passwd", func(content []byte) (string, bool) {
			return judgeAccounts(content, allowedUsers)
		}})
	}
	return rules
}

// matches is called for every name in the image, so it compares the fixed start of a pattern first.
func (r pathRule) matches(name string) bool {
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

// walker goes through the mounted image; layout is its result, with what it adds to the report.
type walker struct {
	origin  int64 // of the file system on the device, in bytes
	scanner *scanner
	rules   []pathRule
	result  *report
	layout  layout
}

// walk judges every name, and notes where every regular file lies on the device. Its content is not
// read: that is in the device's bytes, which are scanned anyhow. Only a file in several pieces is read,
// because a secret may go over the end of one. Symbolic links are not followed: they lead out of the
// image, or to what is visited under its own name.
func (w *walker) walk(directory string) error {
	err := filepath.WalkDir(directory, func(full string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := strings.TrimPrefix(strings.TrimPrefix(full, directory), "/")
		if err := judgePath(full, name, entry, w.rules, w.result); err != nil {
			return err
		}
		if !entry.Type().IsRegular() {
			return nil
		}
		w.result.Files++
		return w.locate(full, "/"+name)
	})
	w.layout.sort()
	return err
}

// locate opens by system call: os.Open would do more for each of tens of thousands of files.
func (w *walker) locate(full, name string) error {
	descriptor, err := syscall.Open(full, syscall.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	extents, whole := extentsOf(descriptor, name, w.origin)
	if err := syscall.Close(descriptor); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	w.layout = append(w.layout, extents...)
	if whole {
		return nil
	}
	file, err := os.Open(full)
	if err != nil {
		return err
	}
	defer file.Close()
	_, err = w.scanner.scan(file, func(h hit) { w.result.addHit(h, name, h.offset) })
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

func judgePath(full, name string, entry fs.DirEntry, rules []pathRule, result *report) error {
	for _, rule := range rules {
		if !rule.matches(name) {
			continue
		}
		var content []byte
		if entry.Type().IsRegular() {
			file, err := os.Open(full)
			if err != nil {
				return err
			}
			content, err = io.ReadAll(io.LimitReader(file, maxJudgedBytes))
			if err := errors.Join(err, file.Close()); err != nil {
				return err
			}
		}
		if detail, found := rule.judge(content); found {
			result.Findings = append(result.Findings, finding{Rule: rule.name, Path: "/" + name, Detail: detail, Where: "file"})
		}
	}
	return nil
}

func exists([]byte) (string, bool) { return "is there", true }

func notEmpty(content []byte) (string, bool) {
	return fmt.Sprintf("%d bytes", len(content)), len(content) > 0
}

// holdsLines counts lines that are neither empty nor comments.
func holdsLines(content []byte) (string, bool) {
	count := 0
	for line := range bytes.Lines(content) {
		if line = bytes.TrimSpace(line); len(line) > 0 && line[0] != '#' {
			count++
		}
	}
	return fmt.Sprintf("%d lines", count), count > 0
}

func judgeMachineID(content []byte) (string, bool) {
	id := string(bytes.TrimSpace(content))
	return "is set", id != "" && id != "uninitialized"
}

// accounts calls f with the fields of each account whose line has at least that many.
func accounts(content []byte, fields int, f func([]string)) {
	for line := range strings.Lines(string(content)) {
		if parts := strings.Split(strings.TrimRight(line, "\n"), ":"); len(parts) >= fields {
			f(parts)
		}
	}
}

// judgeShadow names the accounts that have a password. A field that begins with ! or * matches no
// password, but one that was locked (usermod -L) still has the hash behind the mark.
func judgeShadow(content []byte) (string, bool) {
	var details []string
	accounts(content, 2, func(account []string) {
		switch name, field := account[0], account[1]; {
		case field == "":
			details = append(details, name+" needs no password")
		case strings.Contains(field, "$"):
			details = append(details, name+" has a password hash")
		case field[0] != '!' && field[0] != '*':
			details = append(details, name+" has a password hash")
		}
	})
	return strings.Join(details, ", "), len(details) > 0
}

// judgePasswd finds passwords outside of shadow: the field should say x.
func judgePasswd(content []byte) (string, bool) {
	var details []string
	accounts(content, 7, func(account []string) {
		if field := account[1]; field != "x" && field != "*" && field != "!" {
			details = append(details, account[0]+" has a password field of its own")
		}
	})
	return strings.Join(details, ", "), len(details) > 0
}

// judgeAccounts finds people's accounts that nobody asked for, such as a builder's. Both families give
// people the ids from 1000 up; 65534 is nobody.
func judgeAccounts(content []byte, allowed []string) (string, bool) {
	var details []string
	accounts(content, 7, func(account []string) {
		name, id, shell := account[0], account[2], path.Base(account[6])
		person := len(id) >= 4 && id != "65534"
		if person && shell != "nologin" && shell != "false" && !slices.Contains(allowed, name) {
			details = append(details, name+" can log in")
		}
	})
	return strings.Join(details, ", "), len(details) > 0
}
