package netif

import (
	"errors"
	"fmt"
	"os"
	"syscall"
)

// A Bell tells that something has changed, not what: its messages may be lost when many come at once, so who hears it
// looks again.
type Bell struct {
	file     *os.File
	relevant func(message []byte) bool
}

// LinkBell rings when an interface comes, goes, gains or loses its link (RTNLGRP_LINK).
func LinkBell() (*Bell, error) {
	return newBell(syscall.NETLINK_ROUTE, 1<<(syscall.RTNLGRP_LINK-1), func([]byte) bool { return true })
}

// DeviceBell rings when the kernel tells udev of a device (NETLINK_KOBJECT_UEVENT, its group 1 is the kernel's own)
// and the text is relevant: "add@/devices/...", and then variables like MODALIAS=..., with NUL between.
func DeviceBell(relevant func(event []byte) bool) (*Bell, error) {
	return newBell(syscall.NETLINK_KOBJECT_UEVENT, 1, relevant)
}

func newBell(family int, groups uint32, relevant func([]byte) bool) (*Bell, error) {
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
	return &Bell{os.NewFile(uintptr(socket), "netlink"), relevant}, nil
}

// Wait returns nil when it rang, and os.ErrClosed after Close.
func (b *Bell) Wait() error {
	buffer := make([]byte, 8192)
	for {
		length, err := b.file.Read(buffer)
		switch {
		case errors.Is(err, syscall.ENOBUFS): // messages were lost: one of them might have been relevant
			return nil
		case err != nil:
			return err
		case b.relevant(buffer[:length]):
			return nil
		}
	}
}

// Close ends Wait.
func (b *Bell) Close() error { return b.file.Close() }
