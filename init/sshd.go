package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Pauses before sshd is started again, by doubling; one that ran for a while starts afresh.
const (
	restartPause     = 100 * time.Millisecond
	restartPauseMost = 10 * time.Second
	restartSteady    = 30 * time.Second
)

// setPipeSize is F_SETPIPE_SZ of linux/fcntl.h; the call returns the size that it gave.
const setPipeSize = 1031

var sshdEnvironment = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}

// superviseSSHD keeps the server running. It returns only when the program cannot be run at all.
func (m *machine) superviseSSHD(program string) error {
	pause := restartPause
	for {
		begin := time.Now()
		exit, output, err := m.startSSHD(program)
		if errors.Is(err, errShuttingDown) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("start %s: %w", program, err)
		}
		m.marks.mark("sshd_started")
		status := <-exit
		output.finish()
		if m.processes.isClosed() {
			return nil
		}
		if time.Since(begin) > restartSteady {
			pause = restartPause
		}
		m.log.sayf("sshd ended: %s; starting it again in %s; its last words: %s", describe(status), pause, output.last())
		time.Sleep(pause)
		pause = min(2*pause, restartPauseMost)
	}
}

// startSSHD starts the server. Until the gate is open it gets no further than to its first word, "Server listening
// on ...", because its log is a pipe that is full: whoever connects by then waits in the backlog of a socket that
// listens, and no authentication can fail for a key that has not come yet.
func (m *machine) startSSHD(program string) (<-chan syscall.WaitStatus, *tail, error) {
	reader, writer, plug, err := pluggedPipe()
	if err != nil {
		return nil, nil, err
	}
	defer syscall.Close(writer)
	null, err := os.Open(os.DevNull)
	if err != nil {
		reader.Close()
		return nil, nil, err
	}
	defer null.Close()
	// -D: stay in the foreground; -e: log to standard error, as there may be no syslog.
	files := []uintptr{null.Fd(), uintptr(writer), uintptr(writer)}
	exit, err := m.processes.start([]string{program, "-D", "-e"}, sshdEnvironment, files)
	if err != nil {
		reader.Close()
		return nil, nil, err
	}
	output := newTail()
	m.spawn("sshd's log", func() error {
		defer close(output.complete)
		defer reader.Close()
		select {
		case <-m.gate:
		case <-output.ended:
		}
		if _, err := io.CopyN(io.Discard, reader, plug); err != nil {
			return err
		}
		for lines := bufio.NewScanner(reader); lines.Scan(); {
			line := strings.TrimSpace(lines.Text())
			m.watchSSHD(line)
			m.log.notef("sshd: %s", line)
			output.add(line)
		}
		return nil
	})
	return exit, output, nil
}

// watchSSHD learns from the server's log what the timeline is to know, and completes it when somebody is in.
func (m *machine) watchSSHD(line string) {
	switch {
	case strings.HasPrefix(line, "Server listening on "):
		if m.marks.mark("sshd_listening") {
			close(m.serving)
		}
	case strings.HasPrefix(line, "Accepted publickey for "):
		if m.marks.mark("first_login") {
			if at, err := kernelHandoff(bootTime); err == nil {
				m.marks.markAt("kernel_handoff", at)
			} else {
				m.log.notef("timeline: %v", err)
			}
			m.tellTimeline("first_login")
		}
	}
}

// pluggedPipe is a pipe that takes no more: plug bytes, to be thrown away, fill it. The writing end blocks, as a
// program expects of its standard error.
func pluggedPipe() (reader *os.File, writer int, plug int64, err error) {
	var ends [2]int
	if err := syscall.Pipe2(ends[:], syscall.O_CLOEXEC); err != nil {
		return nil, 0, 0, fmt.Errorf("pipe: %w", err)
	}
	size, _, errno := syscall.Syscall(syscall.SYS_FCNTL, uintptr(ends[1]), setPipeSize, uintptr(os.Getpagesize()))
	if errno == 0 {
		_, err = syscall.Write(ends[1], make([]byte, size))
	} else {
		err = errno
	}
	if err == nil {
		// The Go runtime polls a non-blocking end instead of keeping a thread in read.
		err = syscall.SetNonblock(ends[0], true)
	}
	if err != nil {
		syscall.Close(ends[0])
		syscall.Close(ends[1])
		return nil, 0, 0, fmt.Errorf("pipe: %w", err)
	}
	return os.NewFile(uintptr(ends[0]), "sshd's log"), ends[1], int64(size), nil
}

// A tail keeps the last lines of a process.
type tail struct {
	mutex    sync.Mutex
	lines    []string
	ended    chan struct{} // closed when the process has ended
	complete chan struct{} // closed when its last line was added
}

func newTail() *tail { return &tail{ended: make(chan struct{}), complete: make(chan struct{})} }

// finish waits until all was added; not for long, because children of the process may hold its output open.
func (t *tail) finish() {
	close(t.ended)
	select {
	case <-t.complete:
	case <-time.After(100 * time.Millisecond):
	}
}

func (t *tail) add(line string) {
	t.mutex.Lock()
	defer t.mutex.Unlock()
	t.lines = append(t.lines, line)
	t.lines = t.lines[max(0, len(t.lines)-3):]
}

func (t *tail) last() string {
	t.mutex.Lock()
	defer t.mutex.Unlock()
	return strings.Join(t.lines, " / ")
}

func describe(status syscall.WaitStatus) string {
	if status.Signaled() {
		return "signal: " + status.Signal().String()
	}
	return fmt.Sprintf("status %d", status.ExitStatus())
}
