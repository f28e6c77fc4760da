package main

import (
	"os"
	"strings"
)

const sshdName = "sshd"

// superviseSSHD keeps the server running, behind the gate. It returns only when the program cannot be run at all, or
// when the machine goes down.
func (m *machine) superviseSSHD(program string) error {
	server := &supervised{
		// -D: stay in the foreground; -e: log to standard error, as there may be no syslog.
		service: service{
			Name: sshdName,
			Argv: append([]string{program, "-D", "-e", "-o", "PidFile=" + gateFile}, m.sshdOptions...),
		},
		log:      newServiceLog(sshdName, m.watchSSHD),
		gate:     &gate{path: gateFile, open: m.gate, passed: m.sshdAccepts},
		required: true,
		sessions: true,
	}
	return m.supervise(server, func() { m.marks.mark("sshd_started") })
}

// sshdAccepts is called each time that a server begins to accept connections.
func (m *machine) sshdAccepts(pid string) {
	if m.marks.mark("sshd_listening") {
		close(m.serving)
	}
	if err := os.WriteFile(sshdPIDFile, []byte(pid+"\n"), 0o644); err != nil {
		m.log.notef("sshd's pid: %v", err)
	}
}

// watchSSHD learns from the server's log when somebody is in, and completes the timeline. With a LogLevel below INFO
// sshd does not tell, and the timeline goes without.
func (m *machine) watchSSHD(line string) {
	m.log.notef("sshd: %s", line)
	if !strings.HasPrefix(line, "Accepted publickey for ") || !m.marks.mark("first_login") {
		return
	}
	close(m.loggedIn)
	if at, err := kernelHandoff(bootTime); err == nil {
		m.marks.markAt("kernel_handoff", at)
	} else {
		m.log.notef("timeline: %v", err)
	}
	m.tellTimeline("first_login")
}
