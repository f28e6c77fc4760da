package main

import (
	"bufio"
	"errors"
	"fmt"
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

var sshdEnvironment = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}

// superviseSSHD keeps the server running; started is called after its first start. It returns only when the program
// cannot be run at all.
func (m *machine) superviseSSHD(program string, started func()) error {
	pause := restartPause
	for first := true; ; first = false {
		begin := time.Now()
		exit, output, err := m.startSSHD(program)
		if errors.Is(err, errShuttingDown) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("start %s: %w", program, err)
		}
		if first {
			started()
		}
		status := <-exit
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

func (m *machine) startSSHD(program string) (<-chan syscall.WaitStatus, *tail, error) {
	reader, writer, err := os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	defer writer.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		return nil, nil, err
	}
	defer null.Close()
	// -D: stay in the foreground; -e: log to standard error, as there may be no syslog.
	files := []uintptr{null.Fd(), writer.Fd(), writer.Fd()}
	exit, err := m.processes.start([]string{program, "-D", "-e"}, sshdEnvironment, files)
	if err != nil {
		reader.Close()
		return nil, nil, err
	}
	output := &tail{}
	m.spawn("sshd's log", func() error {
		defer reader.Close()
		for lines := bufio.NewScanner(reader); lines.Scan(); {
			line := strings.TrimSpace(lines.Text())
			m.log.notef("sshd: %s", line)
			output.add(line)
		}
		return nil
	})
	return exit, output, nil
}

// A tail keeps the last lines that were added.
type tail struct {
	mutex sync.Mutex
	lines []string
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
