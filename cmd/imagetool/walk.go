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
	"strconv"
	"strings"
	"syscall"

	"instantenv/internal/secrets"
)

// walker walks the mounted image. Its results are layout and the findings that it adds to the report.
type walker struct {
	origin  int64 // of the file system on the device, in bytes
	scanner *secrets.Scanner
	rules   *ruleIndex
	modes   modeRules
	result  *report
	layout  layout
}

// walk applies the rules to every path, and records where every regular file lies on the device. It does not read the
// content, because the device's bytes are scanned anyway; only a file in several extents is read where they
// meet, because a secret may cross from one to the next. Symbolic links are not followed: they lead out of the image, or to a file that is
// visited under its own name.
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
			return w.judgeOther(name, entry)
		}
		w.result.Files++
		return w.locate(full, "/"+name)
	})
	w.layout.sort()
	return err
}

// locate judges a regular file's mode and capabilities and records its extents. It opens by system call, because os.Open
// does more for each of tens of thousands of files.
func (w *walker) locate(full, name string) error {
	descriptor, err := syscall.Open(full, syscall.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	var status syscall.Stat_t
	if err := syscall.Fstat(descriptor, &status); err != nil {
		return errors.Join(fmt.Errorf("%s: %w", name, err), syscall.Close(descriptor))
	}
	w.judgeMode(name, status.Mode)
	capabilities, err := capabilitiesOf(descriptor)
	if err != nil {
		return errors.Join(fmt.Errorf("%s: %w", name, err), syscall.Close(descriptor))
	}
	if capabilities != nil {
		if detail, found := w.modes.judgeCapabilities(name, capabilities); found {
			w.result.add("capability", name, detail)
		}
	}
	extents, complete := extentsOf(descriptor, name, w.origin)
	if err := syscall.Close(descriptor); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	w.layout = append(w.layout, extents...)
	if complete && len(extents) < 2 {
		return nil
	}
	return w.scan(full, name, extents, complete)
}

// scan reads what the scan of the device does not see of a file: what crosses from one extent to the next, or all of a
// file that is not on the device byte for byte.
func (w *walker) scan(full, name string, extents []extent, complete bool) error {
	file, err := os.Open(full)
	if err != nil {
		return err
	}
	defer file.Close()
	report := func(h secrets.Hit) { w.result.addHit(h, name, h.Offset) }
	if !complete {
		_, err = w.scanner.Scan(file, report)
	}
	if complete {
		for _, joint := range joints(extents) {
			_, one := w.scanner.ScanPart(file, joint.start, joint.end, report)
			err = errors.Join(err, one)
		}
	}
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

func judgePath(full, name string, entry fs.DirEntry, rules *ruleIndex, result *report) error {
	var content []byte
	for i, rule := range rules.matching(name) {
		if i == 0 && entry.Type().IsRegular() {
			var err error
			if content, err = readJudged(full); err != nil {
				return err
			}
		}
		if detail, found := rule.judge(content); found {
			result.add(rule.name, "/"+name, detail)
		}
	}
	return nil
}

// readJudged returns the start of a file: those that path rules are for are small.
func readJudged(name string) ([]byte, error) {
	file, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	content, err := io.ReadAll(io.LimitReader(file, maxJudgedBytes))
	return content, errors.Join(err, file.Close())
}

func exists([]byte) (string, bool) { return "is there", true }

// judgeOther judges what is not a regular file: world-writable directories, and devices outside of /dev.
func (w *walker) judgeOther(name string, entry fs.DirEntry) error {
	switch {
	case entry.Type()&fs.ModeDevice != 0 && !strings.HasPrefix(name, "dev/") && !w.modes.allows("/"+name):
		w.result.add("device-node", "/"+name, "is a device")
	case entry.IsDir():
		info, err := entry.Info()
		if err != nil {
			return err
		}
		w.judgeMode("/"+name, info.Sys().(*syscall.Stat_t).Mode)
	}
	return nil
}

func (w *walker) judgeMode(name string, mode uint32) {
	if rule, detail := w.modes.judge(name, mode, mode&syscall.S_IFMT == syscall.S_IFDIR); rule != "" {
		w.result.add(rule, name, detail)
	}
}

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

// notZeros is for logs with a record per account, which are created full of zeros.
func notZeros(content []byte) (string, bool) {
	return fmt.Sprintf("%d bytes", len(content)), len(bytes.Trim(content, "\x00")) > 0
}

// holds looks for one of these words, without which a file of that name holds no secret.
func holds(words ...string) func([]byte) (string, bool) {
	return func(content []byte) (string, bool) {
		for _, word := range words {
			if bytes.Contains(content, []byte(word)) {
				return "holds " + word, true
			}
		}
		return "", false
	}
}

func judgeHostname(content []byte) (string, bool) {
	name := string(bytes.TrimSpace(content))
	return "is set", name != "" && name != "localhost" && name != "localhost.localdomain"
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

// judgeGroupShadow finds passwords of groups, which let whoever knows one become a member.
func judgeGroupShadow(content []byte) (string, bool) {
	var details []string
	accounts(content, 4, func(group []string) {
		if strings.Trim(group[1], "!*x") != "" {
			details = append(details, group[0]+" has a group password")
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

const (
	firstPerson = 1000 // both families give people the ids from here up
	nobody      = 65534
)

// userID reads the third field as the C library does: white space and signs are skipped, zeros in front too.
func userID(account []string) (int, bool) {
	id, err := strconv.Atoi(strings.TrimSpace(account[2]))
	return id, err == nil
}

// judgeAccounts finds people's accounts that nobody asked for, such as a builder's.
func judgeAccounts(content []byte, allowed []string) (string, bool) {
	var details []string
	accounts(content, 7, func(account []string) {
		name, shell := account[0], path.Base(account[6])
		id, numeric := userID(account)
		person := !numeric || id >= firstPerson && id != nobody
		if person && shell != "nologin" && shell != "false" && !slices.Contains(allowed, name) {
			details = append(details, name+" can log in")
		}
	})
	return strings.Join(details, ", "), len(details) > 0
}

// judgeRootAccounts finds accounts besides root that are root to the kernel.
func judgeRootAccounts(content []byte) (string, bool) {
	var details []string
	accounts(content, 7, func(account []string) {
		if id, numeric := userID(account); numeric && id == 0 && account[0] != "root" {
			details = append(details, account[0]+" has user id 0")
		}
	})
	return strings.Join(details, ", "), len(details) > 0
}

// closedShells are what system accounts have in place of a shell. sync, shutdown and halt have an account each that
// runs the program of its name and nothing else.
var closedShells = map[string]string{
	"nologin": "", "false": "", "sync": "sync", "shutdown": "shutdown", "halt": "halt",
}

// judgeSystemAccounts finds services' accounts with a shell. An empty field is /bin/sh (passwd(5)).
func judgeSystemAccounts(content []byte, allowed []string) (string, bool) {
	var details []string
	accounts(content, 7, func(account []string) {
		name, shell := account[0], account[6]
		id, numeric := userID(account)
		if !numeric || id <= 0 || id >= firstPerson || slices.Contains(allowed, name) {
			return
		}
		owner, closed := closedShells[path.Base(shell)]
		if !closed || !systemDirectory(path.Dir(shell)) || owner != "" && owner != name {
			details = append(details, fmt.Sprintf("%s has the shell %q", name, shell))
		}
	})
	return strings.Join(details, ", "), len(details) > 0
}

func systemDirectory(directory string) bool {
	return slices.Contains([]string{"/bin", "/sbin", "/usr/bin", "/usr/sbin"}, directory)
}
