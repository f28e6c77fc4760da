package supervisor

import (
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"

	"instantenv/init/internal/inittest"
)

// adopted is a process that prints to a pipe, as one that was started before the reaper.
func adopted(t *testing.T, v *Supervisor, script string) *Adopted {
	t.Helper()
	reader, writer, err := pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(writer)
	process, err := v.Processes.start([]string{"/bin/sh", "-c", script}, nil, []uintptr{0, uintptr(writer), uintptr(writer)}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return &Adopted{Child: process, Output: reader, OpenFiles: syscall.Rlimit{Cur: 123, Max: 456}} // not everybody may raise them
}

func TestAnAdoptedProcessIsTheFirstOne(t *testing.T) {
	v, console := newSupervisor(t)
	s := shell(t, "server", `echo later; while :; do sleep 0.01; done`)
	s.Adopted = adopted(t, v, `echo early; while :; do sleep 0.01; done`)
	pid := s.Adopted.PID
	runUntil(t, v, s, "early")
	if got := pidOf(s); got != pid {
		t.Errorf("process %d is looked after, not %d", got, pid)
	}
	limits, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", pid))
	if err != nil || !strings.Contains(string(limits), "Max open files            123                  456 ") {
		t.Errorf("%v\n%s", err, limits)
	}
	v.Processes.Signal(pid, syscall.SIGKILL)
	inittest.WaitFor(t, "the one after it", func() bool { return strings.HasSuffix(s.Log.last(), "later") })
	if !strings.Contains(console.String(), "server ended: signal: killed; starting it again in 100ms") {
		t.Errorf("the console was told\n%s", console)
	}
}
