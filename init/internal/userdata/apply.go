package userdata

import (
	"fmt"
	"os"
	"strings"

	"instantenv/init/internal/atomicfile"
	"instantenv/init/internal/phases"
)

// Apply writes the settings to a directory of their own, for root alone, names the machine, and records that both are done,
// or what of the document could not be used. The error is one of writing.
func (d Data) Apply(book phases.Book, name func(hostname string) error) error {
	// First, since it makes the directory as all may read it.
	if err := book.Set(phases.UserData, phases.Running, ""); err != nil {
		return err
	}
	troubles := d.Complaints
	err := d.writeSettings(string(book) + "/settings")
	if err != nil {
		err = fmt.Errorf("settings: %w", err)
		troubles = append(troubles, err.Error())
	}
	if d.Hostname != "" {
		if failed := name(d.Hostname); failed != nil {
			err = fmt.Errorf("host name: %w", failed)
			troubles = append(troubles, err.Error())
		}
	}
	if len(troubles) > 0 {
		_ = book.Set(phases.UserData, phases.Failed, strings.Join(troubles, "; "))
		return err
	}
	return book.Set(phases.UserData, phases.Done, "")
}

func (d Data) writeSettings(directory string) error {
	if err := os.MkdirAll(directory, 0o700); err != nil {
		return err
	}
	owner := atomicfile.Owner{UID: os.Geteuid(), GID: os.Getegid()}
	for name, value := range d.Settings {
		file := atomicfile.File{Path: directory + "/" + name, Data: []byte(value + "\n"), Mode: 0o600, Owner: owner}
		if err := atomicfile.WriteUnsynced(file); err != nil {
			return err
		}
	}
	return nil
}
