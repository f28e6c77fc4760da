package main

import (
	"fmt"
	"os"
	"strings"
	"syscall"
)

const sshdName = "sshd"

// setPipeSize is F_SETPIPE_SZ of linux/fcntl.h; the call returns the size that it gave.
const setPipeSize = 1031

// superviseSSHD keeps the server running. It returns only when the program cannot be run at all, or when the machine
// goes down. Until the gate is open sshd gets no further than to its first word, "Server listening on ...", because
// its log is a pipe that is full: whoever connects by then waits in the backlog of a socket that listens, and no
// authentication can fail for a key that has not come yet.
func (m *machine) superviseSSHD(program string) error {
	server := &supervised{
		// -D: stay in the foreground; -e: log to standard error, as there may be no syslog.
		service:  service{Name: sshdName, Argv: append([]string{program, "-D", "-e"}, m.sshdOptions...)},
		log:      newServiceLog(sshdName, m.watchSSHD),
		gate:     m.gate,
		required: true,
		sessions: true,
	}
	return m.supervise(server, func() { m.marks.mark("sshd_started") })
}

// watchSSHD learns from the server's log what the timeline is to know, and completes it when somebody is in.
func (m *machine) watchSSHD(line string) {
	m.log.notef("sshd: %s", line)
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

// pluggedPipe is a pipe that takes no more: plug bytes, to be thrown away, fill it.
func pluggedPipe() (reader *os.File, writer int, plug int64, err error) {
	reader, writer, err = pipe()
	if err != nil {
		return nil, 0, 0, err
	}
	size, _, errno := syscall.Syscall(syscall.SYS_FCNTL, uintptr(writer), setPipeSize, uintptr(os.Getpagesize()))
	if errno == 0 {
		_, err = syscall.Write(writer, make([]byte, size))
	} else {
		err = errno
	}
	if err != nil {
		reader.Close()
		syscall.Close(writer)
		return nil, 0, 0, fmt.Errorf("pipe: %w", err)
	}
	return reader, writer, int64(size), nil
}
