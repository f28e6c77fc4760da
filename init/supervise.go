package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"
)

// Pauses before a service is started again, by doubling; one that ran for a while starts afresh.
const (
	restartPause     = 100 * time.Millisecond
	restartPauseMost = 10 * time.Second
	restartSteady    = 30 * time.Second
)

// strayGrace is what processes that a service left behind have between SIGTERM and SIGKILL.
const strayGrace = 500 * time.Millisecond

const searchPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// A supervised service is one that runs, or will run again.
type supervised struct {
	service
	log      *serviceLog
	required bool  // without it the machine is of no use
	gate     *gate // at which it waits before it accepts connections; may be nil
	sessions bool  // its children are people's sessions, which stay when it ends by itself
	quiet    bool  // the console knows that it fails again and again

	group   *cgroup // set before it is remembered, if at all
	mutex   sync.Mutex
	options []string       // more arguments of its next start
	early   *earlyServer   // what is its first process; nil: it has to be started
	main    *loggedProcess // its main process, at its latest start
}

// A loggedProcess is one whose output goes to a log.
type loggedProcess struct {
	child
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

// supervise keeps a service running until the machine goes down; started is called after its first start. Of a
// required one it returns the error for which the program cannot be run.
func (m *machine) supervise(s *supervised, started func()) error {
	pause := restartPause
	for running := false; ; {
		begin := time.Now()
		what := ""
		process, err := m.launch(s)
		switch {
		case errors.Is(err, errShuttingDown):
			return nil
		case err != nil && s.required && !transient(err):
			return fmt.Errorf("start %s: %w: %w", s.Argv[0], err, errNoServer)
		case err != nil:
			what = fmt.Sprintf("cannot be started: %v", err)
		default:
			if !running {
				running = true
				m.remember(s)
				started()
			}
			status := <-process.exit
			process.finish()
			if m.processes.isClosed() {
				return nil // the shutdown sees to the rest
			}
			if !s.sessions {
				s.group.end(strayGrace)
			}
			what = "ended: " + describe(status)
			if s.Restart == restartNot || s.Restart == restartOnFailure && status == 0 {
				m.log.Journalf("%s %s", s.Name, what)
				return nil
			}
		}
		if time.Since(begin) > restartSteady {
			pause = restartPause
		}
		if s.required && pause == restartPauseMost && !m.isServing() {
			return fmt.Errorf("%s %s, time after time; its last words: %s: %w", s.Name, what, s.log.last(), errNoServer)
		}
		m.tellRestart(s, what, pause)
		time.Sleep(pause)
		pause = min(2*pause, restartPauseMost)
	}
}

// tellRestart keeps the console quiet about a service that fails for ever: the last time it speaks is when the pause
// has reached its limit.
func (m *machine) tellRestart(s *supervised, what string, pause time.Duration) {
	words := s.log.last()
	if words != "" {
		words = "; its last words: " + words
	}
	switch {
	case pause < restartPauseMost:
		s.quiet = false
		m.log.Consolef("%s %s; starting it again in %s%s", s.Name, what, pause, words)
	case !s.quiet:
		s.quiet = true
		m.log.Consolef("%s %s; starting it again every %s from now on%s", s.Name, what, pause, words)
	default:
		m.log.Journalf("%s %s; starting it again in %s%s", s.Name, what, pause, words)
	}
}

// transient tells whether a program that could not be run now may be run later: when memory or pids are short.
func transient(err error) bool {
	return errors.Is(err, syscall.EAGAIN) || errors.Is(err, syscall.ENOMEM) || errors.Is(err, syscall.EMFILE) ||
		errors.Is(err, syscall.ENFILE) || errors.Is(err, syscall.EBUSY) || errors.Is(err, syscall.EIO)
}

// launch starts the service's program once.
func (m *machine) launch(s *supervised) (*loggedProcess, error) {
	if s.main == nil && m.cgroups != "" {
		// Without cgroups (a kernel that lacks them) a service still runs, and is stopped by its main process.
		var err error
		if s.group, err = openCgroup(m.cgroups + "/" + s.Name); err != nil {
			m.log.Journalf("%s: no cgroup: %v", s.Name, err)
		}
	}
	if s.gate != nil {
		if err := s.gate.prepare(); err != nil && !s.gate.isOpen() {
			return nil, err
		} else if err != nil { // memory is short; there is nobody to keep out any more
			m.log.Journalf("%s: %v", s.Name, err)
		}
	}
	process, err := m.startOrTake(s)
	if err != nil {
		return nil, err
	}
	if s.gate != nil {
		m.tasks.Spawn("gate of "+s.Name, func() error { return s.gate.attend(process.gone) })
	}
	s.mutex.Lock()
	defer s.mutex.Unlock()
	s.main = process
	return process, nil
}

func (m *machine) startOrTake(s *supervised) (*loggedProcess, error) {
	if s.early == nil {
		return m.start(s.argv(), append([]string{searchPath}, s.Environment...), s.group, s.log)
	}
	early := s.early
	s.early = nil
	if err := early.settle(s.group); err != nil {
		m.log.Journalf("%s: %v", s.Name, err)
	}
	return m.follow(early.child, early.output, s.Argv[0], s.log), nil
}

// startAgain ends a service that has been started, at once, for supervise to start it with other arguments.
func (m *machine) startAgain(s *supervised, options []string) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	s.options = options
	m.processes.signal(s.main.pid, syscall.SIGKILL)
}

// argv is the program and its arguments at its next start.
func (s *supervised) argv() []string {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	return slices.Concat(s.Argv, s.options)
}

// runLogged runs a program to its end, and returns its status and its last words.
func (m *machine) runLogged(argv []string) (syscall.WaitStatus, string, error) {
	log := newServiceLog(filepath.Base(argv[0]), nil)
	process, err := m.start(argv, []string{searchPath}, nil, log)
	if err != nil {
		return 0, "", err
	}
	status := <-process.exit
	process.finish()
	return status, log.last(), nil
}

// run is the runner of process 1, where nobody else may wait for a child. Errors go to the console.
func (m *machine) run(argv []string, stdout *os.File) error {
	process, err := m.processes.start(argv, []string{searchPath}, []uintptr{0, stdout.Fd(), 2}, nil)
	if err != nil {
		return err
	}
	if status := <-process.exit; status != 0 {
		return fmt.Errorf("%s ended: %s", argv[0], describe(status))
	}
	return nil
}

// start starts a program with its output going to a log.
func (m *machine) start(argv, environment []string, group *cgroup, log *serviceLog) (*loggedProcess, error) {
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
	process, err := m.processes.start(argv, environment, files, group)
	if err != nil {
		reader.Close()
		return nil, err
	}
	return m.follow(process, reader, argv[0], log), nil
}

// follow takes what a process prints to its log.
func (m *machine) follow(process child, output *os.File, name string, log *serviceLog) *loggedProcess {
	started := &loggedProcess{process, make(chan struct{}), make(chan struct{})}
	m.tasks.Spawn("log of "+name, func() error {
		defer close(started.read)
		defer output.Close()
		log.follow(output)
		return nil
	})
	return started
}

// pipe has a reading end that the Go runtime polls, instead of keeping a thread in read, and a writing end that blocks,
// as a program expects of its standard error.
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
func (m *machine) remember(s *supervised) {
	m.servicesMutex.Lock()
	defer m.servicesMutex.Unlock()
	m.services = append(m.services, s)
}

// stopServices stops all in the reverse of the order in which they were started, sshd last, and returns by the
// deadline. Nothing is started any more: the reaper is closed.
func (m *machine) stopServices(deadline time.Time) {
	m.servicesMutex.Lock()
	order := slices.Clone(m.services)
	m.servicesMutex.Unlock()
	slices.Reverse(order)
	for _, s := range order {
		m.stop(s, min(serviceGrace, time.Until(deadline)))
	}
}

// stop asks the main process to end, then what it left behind; what has not ended by then is killed.
func (m *machine) stop(s *supervised, grace time.Duration) {
	begin := time.Now()
	s.mutex.Lock()
	main := s.main
	s.mutex.Unlock()
	if s.gate != nil && !s.gate.isOpen() {
		// It waits in a call that goes on after a signal. Nobody is in.
		m.processes.signal(main.pid, syscall.SIGKILL)
	}
	m.processes.signal(main.pid, syscall.SIGTERM)
	select {
	case <-main.gone:
	case <-time.After(grace):
		m.log.Consolef("%s does not end: killing it", s.Name)
		m.processes.signal(main.pid, syscall.SIGKILL)
		grace = 0
	}
	if s.sessions {
		return // they get a hangup with everything else
	}
	if killed := s.group.end(min(grace, strayGrace)); killed && grace > 0 {
		m.log.Journalf("%s left processes behind: killed", s.Name)
	}
	m.log.Journalf("stopped %s in %s", s.Name, time.Since(begin).Round(time.Millisecond))
}

func describe(status syscall.WaitStatus) string {
	if status.Signaled() {
		return "signal: " + status.Signal().String()
	}
	return fmt.Sprintf("status %d", status.ExitStatus())
}
