package supervisor

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"syscall"
	"unsafe"
)

// An Adopted process was started before the reaper existed, and becomes the first process of a Supervised service.
type Adopted struct {
	Child
	Output    *os.File
	OpenFiles syscall.Rlimit // what it is to have
}

// settle gives it the limits and the cgroup that a process started by the supervisor has.
func (a *Adopted) settle(group *cgroup) error {
	var failures []error
	_, _, errno := syscall.RawSyscall6(syscall.SYS_PRLIMIT64, uintptr(a.PID), syscall.RLIMIT_NOFILE,
		uintptr(unsafe.Pointer(&a.OpenFiles)), 0, 0, 0)
	if errno != 0 {
		failures = append(failures, fmt.Errorf("limit of open files: %w", errno))
	}
	if group != nil {
		err := os.WriteFile(group.path+"/cgroup.procs", strconv.AppendInt(nil, int64(a.PID), 10), 0)
		if err != nil {
			failures = append(failures, fmt.Errorf("cgroup: %w", err))
		}
	}
	return errors.Join(failures...)
}
