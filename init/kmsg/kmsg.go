// Package kmsg reads the kernel's log (Documentation/ABI/testing/dev-kmsg). The floor of benchmarks/ reads it too, so it is
// not internal.
package kmsg

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
	// recordMost is more than the kernel gives for one record (PRINTK_MESSAGE_MAX in linux/printk.h).
	recordMost = 8192
)

// A Record is one entry of the log.
type Record struct {
	Priority int           // 8 times the facility, which is 0 for the kernel, and the level
	At       time.Duration // on a clock of the kernel's own
	Text     string        // its first line
}

// Each visits records from the oldest on, until visit wants no more or read fails: at the end of a log that is open
// without blocking with EAGAIN. What is not a record is left out.
func Each(read func(buffer []byte) (int, error), visit func(Record) (more bool)) error {
	for buffer := make([]byte, recordMost); ; {
		length, err := read(buffer)
		if errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.EINTR) {
			continue // EPIPE: records were overwritten, the next read goes on after them
		}
		if err != nil {
			return err
		}
		if length <= 0 {
			return errors.New("the log ends") // a file
		}
		if record, ok := parse(string(buffer[:length])); ok && !visit(record) {
			return nil
		}
	}
}

// parse reads "6,339,5140900,-;text\n KEY=value\n": priority, number, microseconds, flags.
func parse(line string) (record Record, ok bool) {
	head, text, found := strings.Cut(line, ";")
	fields := strings.Split(head, ",")
	if !found || len(fields) < 4 {
		return Record{}, false
	}
	priority, priorityError := strconv.Atoi(fields[0])
	microseconds, timeError := strconv.ParseInt(fields[2], 10, 64)
	if priorityError != nil || timeError != nil {
		return Record{}, false
	}
	text, _, _ = strings.Cut(text, "\n")
	return Record{priority, time.Duration(microseconds) * time.Microsecond, text}, true
}

// Handoff returns when the kernel handed over to process 1, on the given clock, which is joined to the log's by a record
// that we write. Reading a whole log takes a while: not for a time when somebody waits.
func Handoff(clock func() time.Duration) (time.Duration, error) {
	device, err := syscall.Open("/dev/kmsg", syscall.O_RDWR|syscall.O_NONBLOCK|syscall.O_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer syscall.Close(device)
	now := clock()
	// With its newline: the kernel shows no record that may go on.
	if _, err := syscall.Write(device, []byte("<7>"+clockWords+"\n")); err != nil {
		return 0, err
	}
	return findHandoff(now, func(buffer []byte) (int, error) { return syscall.Read(device, buffer) })
}

// findHandoff reads up to the record that was written at now.
func findHandoff(now time.Duration, read func([]byte) (int, error)) (time.Duration, error) {
	handoff, written := time.Duration(-1), time.Duration(0)
	err := Each(read, func(record Record) (more bool) {
		switch {
		case strings.HasPrefix(record.Text, handoffWords) && strings.HasSuffix(record.Text, handoffEnd):
			handoff = record.At
		case record.Text == clockWords:
			written = record.At
			return false
		}
		return true
	})
	if err != nil {
		return 0, err // EAGAIN: our record was not there
	}
	if handoff < 0 {
		return 0, errors.New("the kernel's log does not say when it ran us")
	}
	return now - (written - handoff), nil
}
