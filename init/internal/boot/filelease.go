package boot

import (
	"fmt"
	"syscall"
)

// fSetLease is F_SETLEASE of linux/fcntl.h, which package syscall lacks.
const fSetLease = 1024

// A hold keeps every other program from opening a file: who opens it waits until it is let go. It is a write lease
// (fcntl(2)), so nothing of the file or of the others has to do with it, and who waits can be killed. The kernel lets go
// by itself after 45 s (fs.lease-break-time).
type fileLease struct{ descriptor int }

// takeLease fails where somebody has the file open.
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

// release ends it. The kernel's word that somebody waits (SIGIO) is one of the signals that Go ignores.
func (l fileLease) release() { syscall.Close(l.descriptor) }
