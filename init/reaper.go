package main

import (
	"errors"
	"sync"
	"syscall"
)

// A reaper is the only caller of wait4 in process 1, which inherits every orphan of the machine. Whoever starts a
// process through it learns the status from it.
type reaper struct {
	mutex  sync.Mutex
	exits  map[int]chan syscall.WaitStatus
	closed bool
}

// errShuttingDown is start's answer after close.
var errShuttingDown = errors.New("the machine is shutting down")

func newReaper() *reaper { return &reaper{exits: map[int]chan syscall.WaitStatus{}} }

// start runs a program in a session of its own. The channel gets its status.
func (r *reaper) start(argv, environment []string, files []uintptr) (<-chan syscall.WaitStatus, error) {
	// Held from fork to registration: a child that ends at once is not reaped before it is known.
	r.mutex.Lock()
	defer r.mutex.Unlock()
	if r.closed {
		return nil, errShuttingDown
	}
	pid, err := syscall.ForkExec(argv[0], argv, &syscall.ProcAttr{
		Dir: "/", Env: environment, Files: files, Sys: &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return nil, err
	}
	exit := make(chan syscall.WaitStatus, 1)
	r.exits[pid] = exit
	return exit, nil
}

// close has start refuse from now on, so that a shutdown ends.
func (r *reaper) close() {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	r.closed = true
}

func (r *reaper) isClosed() bool {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	return r.closed
}

// reap collects every child that has ended: SIGCHLD comes once for many. It tells whether any child is left.
func (r *reaper) reap() (left bool) {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, syscall.WNOHANG, nil)
		switch {
		case errors.Is(err, syscall.EINTR):
		case err != nil: // ECHILD
			return false
		case pid == 0:
			return true
		default:
			if exit, known := r.exits[pid]; known {
				exit <- status
				delete(r.exits, pid)
			}
		}
	}
}
