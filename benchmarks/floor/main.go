// Floor is the least that a PID 1 in Go can be: it prints a line. What a machine takes until then is what no init can
// save. Then it prints how long after the kernel ran it that was, by the kernel's log.
package main

import (
	"syscall"
	"time"

	"instantenv/init/kmsg"
)

func main() {
	print("floor\n")
	_ = syscall.Mount("devtmpfs", "/dev", "devtmpfs", 0, "") // where the kernel has not done so itself
	handoff, err := kmsg.Handoff(func() time.Duration { return 0 })
	if err != nil {
		print("no hand-off: ", err.Error(), "\n")
	} else {
		print("after ", -handoff.Microseconds(), " us\n")
	}
	for {
		_ = syscall.Pause()
	}
}
