// Package boottime reads the clock that all times of this program refer to.
package boottime

import (
	"syscall"
	"time"
	"unsafe"
)

// clockBoottime is CLOCK_BOOTTIME: time since the kernel started, time asleep included.
const clockBoottime = 7

// Now reads CLOCK_BOOTTIME. The call cannot fail with a clock that Linux has had since 2.6.39.
func Now() time.Duration {
	var now syscall.Timespec
	_, _, _ = syscall.Syscall(syscall.SYS_CLOCK_GETTIME, clockBoottime, uintptr(unsafe.Pointer(&now)), 0)
	return time.Duration(now.Nano())
}
