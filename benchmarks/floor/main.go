// Floor is the least that a PID 1 in Go can be: it prints a line. What a machine takes until then is what no init can
// save. Then it prints how long after the kernel ran it that was, by the kernel's log, which has both.
package main

import (
	"strconv"
	"strings"
	"syscall"
)

func main() {
	print("floor\n")
	_ = syscall.Mount("devtmpfs", "/dev", "devtmpfs", 0, "") // where the kernel has not done so itself
	if log, err := syscall.Open("/dev/kmsg", syscall.O_RDWR|syscall.O_NONBLOCK, 0); err == nil {
		_, _ = syscall.Write(log, []byte("<7>floor\n"))
		print("after ", sinceRun(log), " us\n")
	}
	for {
		_ = syscall.Pause()
	}
}

// sinceRun reads records, "priority,number,microseconds,flags;text", one at a time from the oldest to our own; -1 where
// one of the two is not there.
func sinceRun(log int) int64 {
	ran, said := int64(-1), int64(-1)
	for buffer := make([]byte, 8192); said < 0; {
		length, err := syscall.Read(log, buffer)
		if err == syscall.EPIPE || err == syscall.EINTR {
			continue // EPIPE: what comes next was overwritten, and the read after it goes on behind that
		}
		if err != nil {
			return -1
		}
		head, text, _ := strings.Cut(string(buffer[:length]), ";")
		fields := strings.Split(head, ",")
		if len(fields) < 4 {
			continue
		}
		at, err := strconv.ParseInt(fields[2], 10, 64)
		switch {
		case err != nil:
		case strings.HasPrefix(text, "Run ") && strings.Contains(text, " as init process"):
			ran = at
		case strings.HasPrefix(text, "floor"):
			said = at
		}
	}
	if ran < 0 {
		return -1
	}
	return said - ran
}
