package supervisor

import (
	"errors"
	"sync"
	"syscall"
)

// A Reaper is the only caller of wait4 in process 1, which inherits every orphan of the machine. It starts processes and
// delivers their status.
type Reaper struct {
	mutex  sync.Mutex
	exits  map[int]chan syscall.WaitStatus
	closed bool
}

// errShuttingDown is start's answer after close.
var errShuttingDown = errors.New("the machine is shutting down")

func NewReaper() *Reaper { return &Reaper{exits: map[int]chan syscall.WaitStatus{}} }

// A Child is a process that a reaper started.
type Child struct {
	PID  int
	Exit <-chan syscall.WaitStatus // gets its status
}

// start runs a program in a session of its own, and in the given cgroup (nil: in this process's).
func (r *Reaper) start(argv, environment []string, files []uintptr, group *cgroup) (Child, error) {
	// Held from fork to registration: a child that ends at once is not reaped before it is known.
	r.mutex.Lock()
	defer r.mutex.Unlock()
	if r.closed {
		return Child{}, errShuttingDown
	}
	system := &syscall.SysProcAttr{Setsid: true}
	if group != nil {
		// From its first instruction: what it forks cannot be left behind.
		system.UseCgroupFD, system.CgroupFD = true, int(group.directory.Fd())
	}
	pid, err := syscall.ForkExec(argv[0], argv, &syscall.ProcAttr{
		Dir: "/", Env: environment, Files: files, Sys: system,
	})
	if err != nil {
		return Child{}, err
	}
	exit := make(chan syscall.WaitStatus, 1)
	r.exits[pid] = exit
	return Child{pid, exit}, nil
}

// Adopt registers a child that was started before the reaper, and has not been reaped.
func (r *Reaper) Adopt(pid int) Child {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	exit := make(chan syscall.WaitStatus, 1)
	r.exits[pid] = exit
	return Child{pid, exit}
}

// Signal sends a signal to a child that has not been reaped yet: until then its pid cannot belong to another process.
func (r *Reaper) Signal(pid int, s syscall.Signal) {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	if _, known := r.exits[pid]; known {
		_ = syscall.Kill(pid, s) // of a zombie: nothing happens
	}
}

// Close makes every later start fail, so that a shutdown comes to an end.
func (r *Reaper) Close() {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	r.closed = true
}

func (r *Reaper) IsClosed() bool {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	return r.closed
}

// Reap collects every child that has ended: one SIGCHLD may stand for many. It reports whether any child is left.
func (r *Reaper) Reap() (left bool) {
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
