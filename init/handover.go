package main

import (
	"io"
	"os"
	"os/signal"
	"syscall"

	"instantenv/init/internal/access"
	"instantenv/init/internal/config"
	"instantenv/init/internal/handover"
	"instantenv/init/internal/logging"
	"instantenv/init/internal/sshkey"
)

// handOver waits on standard input for the lessee of this machine. It returns the exit status.
func handOver(stdin io.Reader, stdout io.Writer, log *logging.Logger) int {
	if os.Geteuid() != 0 {
		log.Consolef("hand-over: permission denied: it needs to be root")
		return 1
	}
	// Whoever asked may leave as soon as there is an answer, and what was written is still to be flushed.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGHUP, syscall.SIGPIPE)
	settings, err := config.Load(config.File)
	if err != nil {
		log.Consolef("%v", err)
		return 1
	}
	user, err := access.FindAccount(access.PasswdFile, settings.LoginUser)
	if err != nil {
		log.Consolef("%v", err)
		return 1
	}
	machine := handover.Machine{
		Mark:        handover.File,
		ReplaceKeys: func(key sshkey.PublicKey) error { return user.ReplaceKeys(key, access.MemoryKeys) },
		EndSessions: func() (int, error) { return handover.EndSessions("/proc", os.Getpid(), syscall.Kill) },
		Flush:       syscall.Sync,
	}
	return machine.Serve(stdin, stdout)
}
