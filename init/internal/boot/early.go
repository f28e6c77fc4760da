package boot

import (
	"fmt"
	"os"
	"syscall"
	"time"

	"instantenv/init/internal/config"
	"instantenv/init/internal/supervisor"
)

// An EarlyStart is the sshd that this program executed before Go's runtime was there (early in package main).
type EarlyStart struct {
	PID    int
	Output int           // the descriptor of the pipe that it prints to
	Lease  int           // the descriptor with the lease on its configuration
	At     time.Duration // when it was executed, on CLOCK_BOOTTIME
}

// An earlyServer is the sshd that runs before we do.
type earlyServer struct {
	supervisor.Adopted
	lease fileLease
	at    time.Duration // when it was executed, on CLOCK_BOOTTIME
}

// adoptEarly registers the early sshd with the reaper. It returns nil if there is none.
func adoptEarly(early *EarlyStart, processes *supervisor.Reaper) *earlyServer {
	if early == nil {
		return nil
	}
	// Nobody keeps a thread in a read of it, see supervisor.pipe.
	_ = syscall.SetNonblock(early.Output, true)
	return &earlyServer{
		Adopted: supervisor.Adopted{
			Child:     processes.Adopt(early.PID),
			Output:    os.NewFile(uintptr(early.Output), "pipe"),
			OpenFiles: openFiles,
		},
		lease: fileLease{early.Lease},
		at:    early.At,
	}
}

// end kills the early sshd, on a machine that is configured to run another one.
func (e *earlyServer) end(processes *supervisor.Reaper) error {
	processes.Signal(e.PID, syscall.SIGKILL)
	e.lease.release()
	e.Output.Close()
	return fmt.Errorf("%s was not wanted: %s", config.DefaultSSHD, supervisor.Describe(<-e.Exit))
}
