package boot

import (
	"fmt"
	"syscall"
)

// fSetLease is F_SETLEASE of linux/fcntl.h, which package syscall lacks.
const fSetLease = 1024

// A fileLease blocks every other process in opening a file until the lease is released. It is a write lease (fcntl(2)): the
// file and the other programs need no changes, and a blocked process can be killed. The kernel breaks the lease after 45 s
// (fs.lease-break-time).
type fileLease struct{ descriptor int }

// takeLease fails if a process has the file open.
func takeLease(path string) (fileLease, error) {
	descriptor, err := syscall.Open(path, syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return fileLease{}, fmt.Errorf("open %s: %w", path, err)
	}
	if _, _, errno := syscall.Syscall(syscall.SYS_FCNTL, uintptr(descriptor), fSetLease, syscall.F_WRLCK); errno != 0 {
		syscall.Close(descriptor)
		return fileLease{}, fmt.Errorf("hold %s: %w", path, errno)
	}
	return fileLease{descriptor}, nil
}

// release ends the lease. The kernel's notice that a process is blocked (SIGIO) is one of the signals that Go ignores.
func (l fileLease) release() { syscall.Close(l.descriptor) }
