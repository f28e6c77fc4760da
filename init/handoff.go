package main

import (
	"errors"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	// handoffWords are what the kernel logs right before it executes process 1 (run_init_process() in init/main.c).
	handoffWords = "Run "
	handoffEnd   = " as init process"
	// clockWords are in a record of our own, whose time is known by both clocks.
	clockWords = "instant-init: what is the time?"
	// kernelRecordMost is more than the kernel gives for one record (PRINTK_MESSAGE_MAX in linux/printk.h).
	kernelRecordMost = 8192
)

// kernelHandoff returns when the kernel handed over to process 1. The kernel's log counts on a clock of its own, which
// is joined to CLOCK_BOOTTIME by a record that we write. Reading a whole log takes a while: not for a time when
// somebody waits.
func kernelHandoff(clock func() time.Duration) (time.Duration, error) {
	device, err := syscall.Open("/dev/kmsg", syscall.O_RDWR|syscall.O_NONBLOCK|syscall.O_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer syscall.Close(device)
	now := clock()
	if _, err := syscall.Write(device, []byte("<7>"+clockWords+"\n")); err != nil {
		return 0, err
	}
	return findHandoff(now, func(buffer []byte) (int, error) { return syscall.Read(device, buffer) })
}

// findHandoff reads one record at a time until the one that was written at now.
func findHandoff(now time.Duration, read func([]byte) (int, error)) (time.Duration, error) {
	buffer := make([]byte, kernelRecordMost)
	handoff := time.Duration(-1)
	for {
		length, err := read(buffer)
		if errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.EINTR) {
			continue // EPIPE: records were overwritten, the next read goes on after them
		}
		if err != nil {
			return 0, err // EAGAIN: the end, and our record was not there
		}
		at, text, found := parseKernelRecord(string(buffer[:length]))
		switch {
		case !found:
		case strings.HasPrefix(text, handoffWords) && strings.HasSuffix(text, handoffEnd):
			handoff = at
		case text == clockWords:
			if handoff < 0 {
				return 0, errors.New("the kernel's log does not say when it ran us")
			}
			return now - (at - handoff), nil
		}
	}
}

// parseKernelRecord reads "6,339,5140900,-;text\n KEY=value\n" (Documentation/ABI/testing/dev-kmsg): priority, number,
// microseconds, flags.
func parseKernelRecord(record string) (at time.Duration, text string, found bool) {
	head, text, found := strings.Cut(record, ";")
	fields := strings.Split(head, ",")
	if !found || len(fields) < 4 {
		return 0, "", false
	}
	microseconds, err := strconv.ParseInt(fields[2], 10, 64)
	if err != nil {
		return 0, "", false
	}
	text, _, _ = strings.Cut(text, "\n")
	return time.Duration(microseconds) * time.Microsecond, text, true
}
