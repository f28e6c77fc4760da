package main

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"instantenv/init/internal/inittest"
)

// server behaves at the gate as sshd does: it writes its pid file, and only then accepts. SIGTERM
// does not end it.
func server(t *testing.T, m *machine, g *gate, then string) *supervised {
	t.Helper()
	s := shell(t, "server", `trap '' TERM; echo listening; echo $$ >"$GATE"; `+then)
	s.Environment, s.gate = []string{"GATE=" + g.path}, g
	m.tasks.Spawn("server", func() error { return m.supervise(s, func() {}) })
	inittest.WaitFor(t, "the server to listen", func() bool { return s.log.last() == "listening" })
	return s
}

func pidOf(s *supervised) int {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	return s.main.pid
}

func TestAServerWaitsAtTheGate(t *testing.T) {
	m, console := testMachine(t)
	passed := make(chan string, 1)
	accepting := filepath.Join(t.TempDir(), "accepting")
	g := &gate{filepath.Join(t.TempDir(), "gate"), make(chan struct{}), func(pid string) { passed <- pid }}
	s := server(t, m, g, ": >"+accepting+"; exec sleep 1000")
	time.Sleep(200 * time.Millisecond)
	if _, err := os.Stat(accepting); err == nil || len(passed) > 0 {
		t.Fatal("it went on before the gate was open")
	}
	close(g.open)
	select {
	case pid := <-passed:
		if want := strconv.Itoa(pidOf(s)); pid != want {
			t.Errorf("passed with the pid %q, started as %s", pid, want)
		}
	case <-time.After(20 * time.Second):
		t.Fatalf("it does not go on:\n%s", console)
	}
	inittest.WaitFor(t, "the server to accept", func() bool { _, err := os.Stat(accepting); return err == nil })

	// The next one passes at once, also when the one before it has removed its pid file, as it does in good order.
	if err := os.Remove(g.path); err != nil {
		t.Fatal(err)
	}
	m.processes.signal(pidOf(s), syscall.SIGKILL)
	select {
	case <-passed:
	case <-time.After(20 * time.Second):
		t.Fatalf("the second one does not go on:\n%s", console)
	}
}

func TestAServerThatEndsAtTheGateIsStartedAgain(t *testing.T) {
	m, _ := testMachine(t)
	passed := make(chan string, 9)
	g := &gate{filepath.Join(t.TempDir(), "gate"), make(chan struct{}), func(pid string) { passed <- pid }}
	s := server(t, m, g, "exec sleep 1000")
	first := pidOf(s)
	m.processes.signal(first, syscall.SIGKILL)
	inittest.WaitFor(t, "another one", func() bool { return pidOf(s) != first })
	close(g.open)
	select {
	case <-passed:
	case <-time.After(20 * time.Second):
		t.Fatal("it does not pass")
	}
	time.Sleep(50 * time.Millisecond)
	if len(passed) != 0 {
		t.Error("one that had ended passed, too")
	}
}

func TestAServerAtTheGateDoesNotHoldUpAShutdown(t *testing.T) {
	m, console := testMachine(t)
	g := &gate{filepath.Join(t.TempDir(), "gate"), make(chan struct{}), func(string) {}}
	server(t, m, g, "")
	m.processes.close()
	m.stopServices(time.Now().Add(servicesLimit))
	if text := console.String(); strings.Contains(text, "does not end") {
		t.Error(text)
	}
}
