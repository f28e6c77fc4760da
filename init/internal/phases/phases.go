// Package phases keeps the file in which a machine says how far it has come: what it mounted, what it loaded, which
// service is up, and why something failed. docs/user-data.md has the contract.
package phases

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"instantenv/init/internal/atomicfile"
	"instantenv/init/internal/boottime"
	"instantenv/init/internal/json"
)

// Directory has what a machine tells about itself to those who use it. It is in memory.
const Directory = "/run/instant-env"

// States of a phase.
const (
	Running = "running"
	Done    = "done"
	Failed  = "failed"
)

// Phases that are ours; recipes have more.
const (
	UserData = "user-data" // settings are written and the host name is set
	Mounted  = "mounted"   // the volumes of user data
)

const (
	nameMost   = 64
	reasonMost = 1000
	pause      = 100 * time.Millisecond
)

// A Phase is one line of the file. At is CLOCK_BOOTTIME in milliseconds.
type Phase struct {
	Name, State, Reason string
	At                  int64
}

// A Book is a directory with the file; Recorded is the machine's.
type Book string

// Recorded is the book of the machine.
const Recorded Book = Directory

func (b Book) file() string { return string(b) + "/phases.json" }

// Set replaces the phase of this name, or adds it. It may be called by several processes at once.
func (b Book) Set(name, state, reason string) error {
	switch {
	case name == "" || len(name) > nameMost || strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789-") != "":
		return fmt.Errorf("the name of a phase has at most %d of a-z, 0-9 and -: %.80q", nameMost, name)
	case state != Running && state != Done && state != Failed:
		return fmt.Errorf("a phase is running, done or failed, not %.80q", state)
	case state == Failed && reason == "":
		return errors.New("a phase that failed has a reason")
	}
	if err := os.MkdirAll(string(b), 0o755); err != nil {
		return err
	}
	lock, err := os.OpenFile(string(b)+"/.lock", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return err
	}
	if len(reason) > reasonMost {
		reason = reason[:reasonMost]
	}
	all := b.read()
	at := slices.IndexFunc(all, func(p Phase) bool { return p.Name == name })
	if at < 0 {
		at, all = len(all), append(all, Phase{})
	}
	all[at] = Phase{name, state, reason, boottime.Now().Milliseconds()}
	owner := atomicfile.Owner{UID: os.Geteuid(), GID: os.Getegid()}
	return atomicfile.WriteUnsynced(atomicfile.File{Path: b.file(), Data: text(all), Mode: 0o644, Owner: owner})
}

func text(all []Phase) []byte {
	document := []byte(`{"version":1,"clock":"CLOCK_BOOTTIME","phases":[`)
	for i, phase := range all {
		if i > 0 {
			document = append(document, ',')
		}
		document = json.AppendText(append(document, `{"name":`...), phase.Name)
		document = json.AppendText(append(document, `,"state":`...), phase.State)
		document = strconv.AppendInt(append(document, `,"at_ms":`...), phase.At, 10)
		document = append(json.AppendText(append(document, `,"reason":`...), phase.Reason), '}')
	}
	return append(document, "]}\n"...)
}

// read returns no phases when there is no file, or one that is not ours.
func (b Book) read() (all []Phase) {
	content, _ := os.ReadFile(b.file())
	document, _ := json.Parse(content)
	object, _ := document.(map[string]any)
	items, _ := object["phases"].([]any)
	for _, item := range items {
		fields, _ := item.(map[string]any)
		name, _ := fields["name"].(string)
		state, _ := fields["state"].(string)
		reason, _ := fields["reason"].(string)
		at, _ := fields["at_ms"].(float64)
		all = append(all, Phase{name, state, reason, int64(at)})
	}
	return all
}

// Await returns when the phase is done. An error has the reason of its failure, or says that the patience is over.
func (b Book) Await(name string, patience time.Duration) error {
	for begin := time.Now(); ; time.Sleep(pause) {
		state := "not begun"
		for _, phase := range b.read() {
			switch {
			case phase.Name != name:
			case phase.State == Done:
				return nil
			case phase.State == Failed:
				return fmt.Errorf("%s failed: %s", name, phase.Reason)
			default:
				state = phase.State
			}
		}
		if time.Since(begin) > patience {
			return fmt.Errorf("%s is %s after %s", name, state, patience)
		}
	}
}
