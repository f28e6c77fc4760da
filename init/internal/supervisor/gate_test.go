package supervisor

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
func server(t *testing.T, v *Supervisor, g *Gate, then string) *Supervised {
	t.Helper()
	s := shell(t, "server", `trap '' TERM; echo listening; echo $$ >"$GATE"; `+then)
	s.Environment, s.Gate = []string{"GATE=" + g.Path}, g
	runUntil(t, v, s, "listening")
	return s
}

func pidOf(s *Supervised) int {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	return s.main.PID
}

func TestAServerWaitsAtTheGate(t *testing.T) {
	v, console := newSupervisor(t)
	passed := make(chan string, 1)
	accepting := filepath.Join(t.TempDir(), "accepting")
	open := make(chan struct{})
	g := &Gate{filepath.Join(t.TempDir(), "gate"), open, func(pid string) { passed <- pid }}
	s := server(t, v, g, ": >"+accepting+"; exec sleep 1000")
	time.Sleep(200 * time.Millisecond)
	if _, err := os.Stat(accepting); err == nil || len(passed) > 0 {
		t.Fatal("it went on before the gate was open")
	}
	close(open)
	select {
	case pid := <-passed:
		if want := strconv.Itoa(pidOf(s)); pid != want {
			t.Errorf("passed with the pid %q, started as %s", pid, want)
		}
	case <-time.After(inittest.LongEnough):
		t.Fatalf("it does not go on:\n%s", console)
	}
	inittest.WaitFor(t, "the server to accept", func() bool { _, err := os.Stat(accepting); return err == nil })

	// The next one passes at once, also when the one before it has removed its pid file, as it does in good order.
	if err := os.Remove(g.Path); err != nil {
		t.Fatal(err)
	}
	v.Processes.Signal(pidOf(s), syscall.SIGKILL)
	select {
	case <-passed:
	case <-time.After(inittest.LongEnough):
		t.Fatalf("the second one does not go on:\n%s", console)
	}
}

func TestAServerThatEndsAtTheGateIsStartedAgain(t *testing.T) {
	v, _ := newSupervisor(t)
	passed := make(chan string, 9)
	open := make(chan struct{})
	g := &Gate{filepath.Join(t.TempDir(), "gate"), open, func(pid string) { passed <- pid }}
	s := server(t, v, g, "exec sleep 1000")
	first := pidOf(s)
	v.Processes.Signal(first, syscall.SIGKILL)
	inittest.WaitFor(t, "another one", func() bool { return pidOf(s) != first })
	close(open)
	select {
	case <-passed:
	case <-time.After(inittest.LongEnough):
		t.Fatal("it does not pass")
	}
	time.Sleep(50 * time.Millisecond)
	if len(passed) != 0 {
		t.Error("one that had ended passed, too")
	}
}

func TestAServerAtTheGateDoesNotHoldUpAShutdown(t *testing.T) {
	v, console := newSupervisor(t)
	open := make(chan struct{})
	g := &Gate{filepath.Join(t.TempDir(), "gate"), open, func(string) {}}
	server(t, v, g, "")
	v.Processes.Close()
	v.StopServices(time.Now().Add(inittest.LongEnough))
	if text := console.String(); strings.Contains(text, "does not end") {
		t.Error(text)
	}
}
