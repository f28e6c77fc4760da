package boot

import (
	"errors"
	"time"

	"instantenv/init/internal/supervisor"
)

// How long a machine that has failed stays on. It never starts again by itself: what failed once would fail again.
const (
	// fatalPause, when nobody can log in, leaves the cause on the console long enough for EC2 to record it.
	fatalPause = 10 * time.Second
	// servingPause, when sshd runs, leaves people the time to log in, to look, and to save what they have there.
	servingPause = 5 * time.Minute
)

// fatal prints the cause and the machine's condition, and powers the machine off after a pause for reading them.
func (m *machine) fatal(cause error) {
	m.log.Consolef("fatal: %v", cause)
	pause := servingPause
	if !m.isServing() || errors.Is(cause, supervisor.ErrNoServer) {
		pause = fatalPause
		for _, line := range diagnose("/") {
			m.log.Consolef("%s", line)
		}
	}
	m.log.Consolef("powering off in %s", pause)
	time.Sleep(pause)
	m.powerOff("a fatal error")
}

// isServing reports whether sshd has ever accepted connections.
func (m *machine) isServing() bool {
	select {
	case <-m.serving:
		return true
	default:
		return false
	}
}
