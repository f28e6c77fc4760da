// Package supervisor starts programs, reaps what ends, and keeps sshd and the services running until the machine goes
// down.
package supervisor

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"instantenv/init/internal/logging"
	"instantenv/init/internal/task"
)

// Pauses before a service is started again: they double, and start afresh after a run of restartSteady.
const (
	restartPause     = 100 * time.Millisecond
	restartPauseMost = 10 * time.Second
	restartSteady    = 30 * time.Second
)

// strayGrace is what processes that a service left behind have between SIGTERM and SIGKILL.
const strayGrace = 500 * time.Millisecond

// serviceGrace is what a service has between SIGTERM and SIGKILL when the machine goes down.
const serviceGrace = 2 * time.Second

// SSHD is the name of the one service that no file declares.
const SSHD = "sshd"

// ErrNoServer is the cause of errors after which nobody can log in any more.
var ErrNoServer = errors.New("there is no server to log in to")

// SearchPath is in the environment of every program that is started.
const SearchPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// A Config is what a Supervisor needs of the machine.
type Config struct {
	Log       *logging.Logger
	Tasks     *task.Group
	Processes *Reaper
	Cgroups   string      // where services have theirs; "": nowhere
	IsServing func() bool // whether people can log in, or could once
}

// A Supervisor keeps programs running until the machine goes down.
type Supervisor struct {
	Config
	grace      time.Duration // serviceGrace, but in tests
	delegation sync.Once     // of the control groups' controllers

	mutex      sync.Mutex
	begun      map[string]chan struct{} // closed when the service of this name was started for the first time
	services   []*Supervised            // that were started, in this order
	complaints []string                 // about declarations, which are read more than once
}

// New starts nothing yet.
func New(config Config) *Supervisor { return &Supervisor{Config: config, grace: serviceGrace} }

// A Supervised service is one that runs, or will run again.
type Supervised struct {
	Service
	Log      *ServiceLog
	Required bool     // the machine is useless without it
	Gate     *Gate    // at which it waits before it accepts connections; may be nil
	Sessions bool     // its children are login sessions, which stay when it ends by itself
	Adopted  *Adopted // its first process, if that runs already; may be nil
	Options  []string // more arguments of its next start

	quiet bool    // the console has been told that it keeps failing
	group *cgroup // set before it is remembered, if at all
	mutex sync.Mutex
	main  *loggedProcess // its main process, at its latest start
}

// A loggedProcess is one whose output goes to a log.
type loggedProcess struct {
	Child
	gone chan struct{} // closed by finish
	read chan struct{} // closed when all its output is in the log
}

// wordsLimit is how long the last words of a process are waited for: its children may hold its output open.
const wordsLimit = 100 * time.Millisecond

// finish is called when the process has been reaped.
func (p *loggedProcess) finish() {
	close(p.gone)
	select {
	case <-p.read:
	case <-time.After(wordsLimit):
	}
}

// Supervise keeps a service running until the machine goes down; started is called after its first start. It returns an
// error if the program of a required service cannot run.
func (v *Supervisor) Supervise(s *Supervised, started func()) error {
	pause := restartPause
	for running := false; ; {
		begin := time.Now()
		what := ""
		process, err := v.launch(s)
		switch {
		case errors.Is(err, errShuttingDown):
			return nil
		case err != nil && s.Required && !transient(err):
			return fmt.Errorf("start %s: %w: %w", s.Argv[0], err, ErrNoServer)
		case err != nil:
			what = fmt.Sprintf("cannot be started: %v", err)
		default:
			if !running {
				running = true
				v.remember(s)
				started()
			}
			status := <-process.Exit
			process.finish()
			if v.Processes.IsClosed() {
				return nil // the shutdown sees to the rest
			}
			if !s.Sessions {
				s.group.end(strayGrace)
			}
			what = "ended: " + Describe(status)
			if s.Restart == restartNot || s.Restart == restartOnFailure && status == 0 {
				v.Log.Journalf("%s %s", s.Name, what)
				return nil
			}
		}
		if time.Since(begin) > restartSteady {
			pause = restartPause
		}
		if s.Required && pause == restartPauseMost && !v.IsServing() {
			return fmt.Errorf("%s %s, time after time; its last words: %s: %w", s.Name, what, s.Log.last(), ErrNoServer)
		}
		v.tellRestart(s, what, pause)
		time.Sleep(pause)
		pause = min(2*pause, restartPauseMost)
	}
}

// tellRestart logs a restart. The console gets no more lines about a service once the pause has reached its limit.
func (v *Supervisor) tellRestart(s *Supervised, what string, pause time.Duration) {
	words := s.Log.last()
	if words != "" {
		words = "; its last words: " + words
	}
	switch {
	case pause < restartPauseMost:
		s.quiet = false
		v.Log.Consolef("%s %s; starting it again in %s%s", s.Name, what, pause, words)
	case !s.quiet:
		s.quiet = true
		v.Log.Consolef("%s %s; starting it again every %s from now on%s", s.Name, what, pause, words)
	default:
		v.Log.Journalf("%s %s; starting it again in %s%s", s.Name, what, pause, words)
	}
}

// transient reports whether a start may succeed later: memory, pids or files are short.
func transient(err error) bool {
	return errors.Is(err, syscall.EAGAIN) || errors.Is(err, syscall.ENOMEM) || errors.Is(err, syscall.EMFILE) ||
		errors.Is(err, syscall.ENFILE) || errors.Is(err, syscall.EBUSY) || errors.Is(err, syscall.EIO)
}

// launch starts the service's program once.
func (v *Supervisor) launch(s *Supervised) (*loggedProcess, error) {
	if s.main == nil && v.Cgroups != "" {
		// Without cgroups (a kernel that lacks them) a service still runs, and is stopped by its main process.
		var err error
		if s.group, err = openCgroup(v.Cgroups + "/" + s.Name); err != nil {
			v.Log.Journalf("%s: no cgroup: %v", s.Name, err)
		}
	}
	if s.Gate != nil {
		if err := s.Gate.prepare(); err != nil && !s.Gate.isOpen() {
			return nil, err
		} else if err != nil { // memory is short; there is nobody to keep out any more
			v.Log.Journalf("%s: %v", s.Name, err)
		}
	}
	process, err := v.startOrTake(s)
	if err != nil {
		return nil, err
	}
	if s.Gate != nil {
		v.Tasks.Spawn("gate of "+s.Name, func() error { return s.Gate.attend(process.gone) })
	}
	s.mutex.Lock()
	defer s.mutex.Unlock()
	s.main = process
	return process, nil
}

func (v *Supervisor) startOrTake(s *Supervised) (*loggedProcess, error) {
	if s.Adopted == nil {
		return v.start(s.argv(), append([]string{SearchPath}, s.Environment...), s.group, s.Log)
	}
	adopted := s.Adopted
	s.Adopted = nil
	if err := adopted.settle(s.group); err != nil {
		v.Log.Journalf("%s: %v", s.Name, err)
	}
	return v.follow(adopted.Child, adopted.Output, s.Argv[0], s.Log), nil
}

// StartAgain kills a running service, so that Supervise starts it again with further arguments.
func (v *Supervisor) StartAgain(s *Supervised, options []string) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	s.Options = options
	v.Processes.Signal(s.main.PID, syscall.SIGKILL)
}

// argv is the program and its arguments at its next start.
func (s *Supervised) argv() []string {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	return slices.Concat(s.Argv, s.Options)
}

// RunLogged runs a program to its end. An error of its own has its status and its last words.
func (v *Supervisor) RunLogged(argv []string) error {
	log := NewServiceLog(filepath.Base(argv[0]), nil)
	process, err := v.start(argv, []string{SearchPath}, nil, log)
	if err != nil {
		return err
	}
	status := <-process.Exit
	process.finish()
	if status != 0 {
		return fmt.Errorf("%s ended: %s: %s", argv[0], Describe(status), log.last())
	}
	return nil
}

// Run runs a program to its end, with its output going to a file and its errors to the console.
func (v *Supervisor) Run(argv []string, stdout *os.File) error {
	process, err := v.Processes.start(argv, []string{SearchPath}, []uintptr{0, stdout.Fd(), 2}, nil)
	if err != nil {
		return err
	}
	if status := <-process.Exit; status != 0 {
		return fmt.Errorf("%s ended: %s", argv[0], Describe(status))
	}
	return nil
}

// start starts a program with its output going to a log.
func (v *Supervisor) start(argv, environment []string, group *cgroup, log *ServiceLog) (*loggedProcess, error) {
	reader, writer, err := pipe()
	if err != nil {
		return nil, err
	}
	defer syscall.Close(writer)
	null, err := os.Open(os.DevNull)
	if err != nil {
		reader.Close()
		return nil, err
	}
	defer null.Close()
	files := []uintptr{null.Fd(), uintptr(writer), uintptr(writer)}
	process, err := v.Processes.start(argv, environment, files, group)
	if err != nil {
		reader.Close()
		return nil, err
	}
	return v.follow(process, reader, argv[0], log), nil
}

// follow copies a process's output to its log.
func (v *Supervisor) follow(process Child, output *os.File, name string, log *ServiceLog) *loggedProcess {
	started := &loggedProcess{process, make(chan struct{}), make(chan struct{})}
	v.Tasks.Spawn("log of "+name, func() error {
		defer close(started.read)
		defer output.Close()
		log.follow(output)
		return nil
	})
	return started
}

// pipe returns a reading end that the Go runtime polls, so that no thread waits in read, and a writing end that blocks, as
// a program expects of its standard error.
func pipe() (reader *os.File, writer int, err error) {
	var ends [2]int
	if err := syscall.Pipe2(ends[:], syscall.O_CLOEXEC); err != nil {
		return nil, 0, fmt.Errorf("pipe: %w", err)
	}
	if err := syscall.SetNonblock(ends[0], true); err != nil {
		syscall.Close(ends[0])
		syscall.Close(ends[1])
		return nil, 0, fmt.Errorf("pipe: %w", err)
	}
	return os.NewFile(uintptr(ends[0]), "pipe"), ends[1], nil
}

// remember adds a service to those that a shutdown stops.
func (v *Supervisor) remember(s *Supervised) {
	v.mutex.Lock()
	defer v.mutex.Unlock()
	v.services = append(v.services, s)
}

// StopServices stops all services in the reverse order of their start, sshd last, and returns by the deadline. The reaper
// must be closed, so that none is started meanwhile.
func (v *Supervisor) StopServices(deadline time.Time) {
	v.mutex.Lock()
	order := slices.Clone(v.services)
	v.mutex.Unlock()
	slices.Reverse(order)
	for _, s := range order {
		v.stop(s, min(v.grace, time.Until(deadline)))
	}
}

// stop ends the main process, then the processes that it left behind, and kills those that do not end in time.
func (v *Supervisor) stop(s *Supervised, grace time.Duration) {
	begin := time.Now()
	s.mutex.Lock()
	main := s.main
	s.mutex.Unlock()
	if s.Gate != nil && !s.Gate.isOpen() {
		// It waits in a call that goes on after a signal. Nobody is in.
		v.Processes.Signal(main.PID, syscall.SIGKILL)
	}
	v.Processes.Signal(main.PID, syscall.SIGTERM)
	select {
	case <-main.gone:
	case <-time.After(grace):
		v.Log.Consolef("%s does not end: killing it", s.Name)
		v.Processes.Signal(main.PID, syscall.SIGKILL)
		grace = 0
	}
	if s.Sessions {
		return // they get a hangup with everything else
	}
	if killed := s.group.end(min(grace, strayGrace)); killed && grace > 0 {
		v.Log.Journalf("%s left processes behind: killed", s.Name)
	}
	v.Log.Journalf("stopped %s in %s", s.Name, time.Since(begin).Round(time.Millisecond))
}

// Describe says how a process ended.
func Describe(status syscall.WaitStatus) string {
	if status.Signaled() {
		return "signal: " + status.Signal().String()
	}
	return fmt.Sprintf("status %d", status.ExitStatus())
}
