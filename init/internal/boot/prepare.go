package boot

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"instantenv/init/internal/paths"
)

// links that devtmpfs does not make, and one that old images lack.
var links = map[string]string{
	"/dev/fd":     "/proc/self/fd",
	"/dev/stdin":  "/proc/self/fd/0",
	"/dev/stdout": "/proc/self/fd/1",
	"/dev/stderr": "/proc/self/fd/2",
	"/var/run":    "/run",
}

// serverDirectories are on the fresh /run before sshd starts. Debian's wants /run/sshd for privilege separation; Amazon
// Linux has /usr/share/empty.sshd in its package.
var serverDirectories = []string{"/run/sshd", paths.Runtime}

const lockDirectory = "/run/lock" // anybody's, as /tmp

// openFiles is what systemd gives to services and sessions; the kernel's own limit is 4096.
var openFiles = syscall.Rlimit{Cur: 1024, Max: 524288}

// prepareServer and prepareLogins set up what programs expect beside the mounts. A login may work without some of it (the
// root may be read-only, or full), so both continue after an error.

// prepareServer sets up what sshd needs, or inherits, when it starts.
func prepareServer() error {
	syscall.Umask(0o022)
	var failures errs
	for _, path := range serverDirectories {
		failures.add("directory", os.MkdirAll(path, 0o755))
	}
	failures.add("limit of open files", syscall.Setrlimit(syscall.RLIMIT_NOFILE, &openFiles))
	// Ctrl-Alt-Del comes as SIGINT instead of resetting the machine.
	failures.add("Ctrl-Alt-Del", syscall.Reboot(syscall.LINUX_REBOOT_CMD_CAD_OFF))
	return errors.Join(failures...)
}

// prepareLogins sets up what only people and their programs need. It takes as long as the mounts, while sshd loads.
func prepareLogins() error {
	var failures errs
	for link, target := range links {
		if err := os.Symlink(target, link); !errors.Is(err, os.ErrExist) {
			failures.add("link", err)
		}
	}
	failures.add("directory", os.MkdirAll(lockDirectory, 0o755))
	failures.add("directory", os.Chmod(lockDirectory, 0o777|os.ModeSticky))
	// The kernel drops all but ten lines in five seconds that a process logs, unless told that it may not.
	failures.add("kernel's log", os.WriteFile("/proc/sys/kernel/printk_devkmsg", []byte("on\n"), 0))
	// who(1) and sshd's login records; nothing depends on it.
	if file, err := os.OpenFile("/run/utmp", os.O_CREATE|os.O_WRONLY, 0o644); err == nil {
		file.Close()
	}
	return errors.Join(failures...)
}

// errs collects what failed.
type errs []error

func (e *errs) add(what string, err error) {
	if err != nil {
		*e = append(*e, fmt.Errorf("%s: %w", what, err))
	}
}
