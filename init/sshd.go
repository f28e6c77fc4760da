package main

import (
	"os"
	"strings"
)

const (
	sshdName          = "sshd"
	defaultSSHD       = "/usr/sbin/sshd"
	sshdConfiguration = sshDirectory + "/sshd_config"
)

// startSSHD has the server running from now on, behind the gate. Where it can it does not wait for the host keys: sshd
// links its libraries and sets up its cryptography for far longer than it takes to make them, then reads sshd_config,
// and then the keys. So that file is held until they are there.
func (m *machine) startSSHD(hostKeys <-chan error) error {
	program := m.image.settings.SSHD
	server := &supervised{
		// -D: stay in the foreground; -e: log to standard error, as there may be no syslog.
		service:  service{Name: sshdName, Argv: []string{program, "-D", "-e", "-o", "PidFile=" + gateFile}},
		log:      newServiceLog(sshdName, m.watchSSHD),
		gate:     &gate{path: gateFile, open: m.gate, passed: m.sshdAccepts},
		required: true,
		sessions: true,
	}
	running := make(chan struct{})
	supervise := func() error {
		return m.supervise(server, func() {
			m.marks.mark("sshd_started")
			close(running)
		})
	}
	if m.image.notHeld != nil {
		m.log.notef("sshd starts when its host keys are there: %v", m.image.notHeld)
		if err := <-hostKeys; err != nil {
			return err
		}
		server.options = m.sshdOptions
		m.spawn(sshdName, supervise)
		return nil
	}
	m.spawn(sshdName, supervise)
	m.spawn("sshd's host keys", func() error {
		if err := <-hostKeys; err != nil {
			return err // with the file still held: sshd does not come that far
		}
		if len(m.sshdOptions) > 0 {
			<-running
			m.startAgain(server, m.sshdOptions)
		}
		m.image.held.letGo()
		return nil
	})
	return nil
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
