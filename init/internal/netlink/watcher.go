// Package netlink subscribes to the kernel's notifications about network interfaces and devices.
package netlink

import (
	"errors"
	"fmt"
	"os"
	"syscall"
)

// A Watcher reports that something changed, not what: the kernel drops messages when many come at once, so its reader
// looks at the present state again.
type Watcher struct {
	file     *os.File
	relevant func(message []byte) bool
}

// WatchLinks reports interfaces that come, go, gain or lose their link (RTNLGRP_LINK).
func WatchLinks() (*Watcher, error) {
	return watch(syscall.NETLINK_ROUTE, 1<<(syscall.RTNLGRP_LINK-1), func([]byte) bool { return true })
}

// WatchDevices reports the kernel's device events (NETLINK_KOBJECT_UEVENT, whose group 1 is the kernel's own) that are
// relevant. The text of an event is "add@/devices/...", followed by variables like MODALIAS=..., separated by NUL.
func WatchDevices(relevant func(event []byte) bool) (*Watcher, error) {
	return watch(syscall.NETLINK_KOBJECT_UEVENT, 1, relevant)
}

func watch(family int, groups uint32, relevant func([]byte) bool) (*Watcher, error) {
	// Non-blocking, so that the Go runtime polls it and no thread waits in read.
	kind := syscall.SOCK_RAW | syscall.SOCK_CLOEXEC | syscall.SOCK_NONBLOCK
	socket, err := syscall.Socket(syscall.AF_NETLINK, kind, family)
	if err != nil {
		return nil, fmt.Errorf("netlink: %w", err)
	}
	if err := syscall.Bind(socket, &syscall.SockaddrNetlink{Family: syscall.AF_NETLINK, Groups: groups}); err != nil {
		syscall.Close(socket)
		return nil, fmt.Errorf("subscribe to netlink: %w", err)
	}
	return &Watcher{os.NewFile(uintptr(socket), "netlink"), relevant}, nil
}

// Wait returns nil after a change, and os.ErrClosed after Close.
func (w *Watcher) Wait() error {
	buffer := make([]byte, 8192)
	for {
		length, err := w.file.Read(buffer)
		switch {
		case errors.Is(err, syscall.ENOBUFS): // messages were lost: one of them might have been relevant
			return nil
		case err != nil:
			return err
		case w.relevant(buffer[:length]):
			return nil
		}
	}
}

// Close ends Wait.
func (w *Watcher) Close() error { return w.file.Close() }
