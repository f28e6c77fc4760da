package boot

import (
	"os"
	"strings"

	"instantenv/init/internal/boottime"
	"instantenv/init/internal/paths"
	"instantenv/init/internal/supervisor"
	"instantenv/init/kmsg"
)

const (
	GateFile = paths.Runtime + "/sshd.gate"
	// sshdPIDFile is where people look for the server's process id: its default, which the gate takes the place of.
	sshdPIDFile       = "/run/sshd.pid"
	SSHDConfiguration = paths.SSH + "/sshd_config"
)

// startSSHD starts the server behind the gate. If possible it does not wait for the host keys: sshd links its libraries and
// sets up its cryptography for far longer than it takes to make them, then reads sshd_config, and then the keys. A lease on
// that file delays sshd until they exist. In most cases sshd runs already, see early in package main.
func (m *machine) startSSHD(hostKeys <-chan error) error {
	early := m.image.early
	if early != nil && m.image.noLease != nil {
		m.log.Journalf("%v", early.end(m.processes))
		early = nil
	}
	server := &supervisor.Supervised{
		Service:  supervisor.Service{Name: supervisor.SSHD, Argv: ServerArguments(m.image.settings.SSHD)},
		Log:      supervisor.NewServiceLog(supervisor.SSHD, m.watchSSHD),
		Gate:     &supervisor.Gate{Path: GateFile, Open: m.gate, Passed: m.sshdAccepts},
		Required: true,
		Sessions: true,
	}
	if early != nil {
		server.Adopted = &early.Adopted
	}
	running := make(chan struct{})
	supervise := func() error {
		return m.services.Supervise(server, func() {
			if early != nil {
				m.marks.MarkAt("sshd_started", early.at)
			}
			m.marks.Mark("sshd_started")
			close(running)
		})
	}
	if m.image.noLease != nil {
		m.log.Journalf("sshd starts when its host keys are there: %v", m.image.noLease)
		if err := <-hostKeys; err != nil {
			return err
		}
		server.Options = m.sshdOptions
		m.tasks.Spawn(supervisor.SSHD, supervise)
		return nil
	}
	m.tasks.Spawn(supervisor.SSHD, supervise)
	m.tasks.Spawn("sshd's host keys", func() error {
		if err := <-hostKeys; err != nil {
			return err // with the lease still there: sshd does not come that far
		}
		<-running // the gate is there
		if len(m.sshdOptions) > 0 {
			m.services.StartAgain(server, m.sshdOptions)
		}
		m.image.lease.release()
		return nil
	})
	return nil
}

// ServerArguments have it stay in the foreground and log to standard error, as there may be no syslog.
func ServerArguments(program string) []string {
	return []string{program, "-D", "-e", "-o", "PidFile=" + GateFile}
}

// sshdAccepts is called each time that a server begins to accept connections.
func (m *machine) sshdAccepts(pid string) {
	if m.marks.Mark("sshd_listening") {
		close(m.serving)
	}
	if err := os.WriteFile(sshdPIDFile, []byte(pid+"\n"), 0o644); err != nil {
		m.log.Journalf("sshd's pid: %v", err)
	}
}

// watchSSHD recognises the first login in the server's log, and completes the timeline. With a LogLevel below INFO sshd
// does not log it, and the timeline lacks it.
func (m *machine) watchSSHD(line string) {
	m.log.Journalf("sshd: %s", line)
	if !strings.HasPrefix(line, "Accepted publickey for ") || !m.marks.Mark("first_login") {
		return
	}
	close(m.loggedIn)
	if at, err := kmsg.Handoff(boottime.Now); err == nil {
		m.marks.MarkAt("kernel_handoff", at)
	} else {
		m.log.Journalf("timeline: %v", err)
	}
	m.tellTimeline("first_login")
}
