package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"instantenv/init/internal/config"
	"instantenv/init/internal/inittest"
	"instantenv/init/internal/mount"
)

func TestEarlyWordsAreThoseOfALaterStart(t *testing.T) {
	var arguments []string
	for _, word := range earlyWords[7:12] { // as early_*.s count them
		text, whole := strings.CutSuffix(word, "\x00")
		if !whole || strings.Contains(text, "\x00") {
			t.Errorf("%q is not a word of C", word)
		}
		arguments = append(arguments, text)
	}
	for i, word := range []string{mount.Table[0].Kind, mount.Table[0].Target, mount.Table[2].Kind, mount.Table[2].Target, mount.Table[2].Options} {
		if earlyWords[i] != word+"\x00" {
			t.Errorf("mounts %q, not %q", earlyWords[i], word)
		}
	}
	if want := serverArguments(config.DefaultSSHD); !slices.Equal(arguments, want) {
		t.Errorf("got %q, want %q", arguments, want)
	}
	if len(arguments) >= len(earlyArguments) {
		t.Error("no room for the end of the arguments")
	}
}

// started is a process as early leaves one.
func started(t *testing.T, m *machine, script string) (server *earlyServer, leasedPath string) {
	t.Helper()
	reader, writer, err := pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(writer)
	process, err := m.processes.start([]string{"/bin/sh", "-c", script}, nil, []uintptr{0, uintptr(writer), uintptr(writer)}, nil)
	if err != nil {
		t.Fatal(err)
	}
	leasedPath = inittest.Write(t, filepath.Join(t.TempDir(), "file"), "")
	lease, err := takeLease(leasedPath)
	if err != nil {
		t.Skipf("no leases here: %v", err)
	}
	return &earlyServer{child: process, output: reader, lease: lease}, leasedPath
}

func TestAnEarlyServerIsTheFirstProcess(t *testing.T) {
	m, console := testMachine(t)
	usual := openFiles
	defer func() { openFiles = usual }()
	openFiles.Cur, openFiles.Max = 123, 456 // not everybody may raise them
	s := shell(t, "server", `echo later; while :; do sleep 0.01; done`)
	s.early, _ = started(t, m, `echo early; while :; do sleep 0.01; done`)
	pid := s.early.pid
	defer s.early.lease.release()
	running := make(chan struct{})
	m.tasks.Spawn("server", func() error { return m.supervise(s, func() { close(running) }) })
	<-running
	inittest.WaitFor(t, "what it printed", func() bool { return s.log.last() == "early" })
	if s.main.pid != pid {
		t.Errorf("process %d is looked after, not %d", s.main.pid, pid)
	}
	limits, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", pid))
	if err != nil || !strings.Contains(string(limits), "Max open files            123                  456 ") {
		t.Errorf("%v\n%s", err, limits)
	}
	m.processes.signal(pid, syscall.SIGKILL)
	inittest.WaitFor(t, "the one after it", func() bool { return strings.HasSuffix(s.log.last(), "later") })
	if !strings.Contains(console.String(), "server ended: signal: killed; starting it again in 100ms") {
		t.Errorf("the console was told\n%s", console)
	}
}

func TestAnEarlyServerThatIsNotWantedEnds(t *testing.T) {
	m, _ := testMachine(t)
	server, path := started(t, m, `while :; do sleep 0.01; done`)
	if err := server.end(m.processes); !strings.Contains(err.Error(), "not wanted: signal: killed") {
		t.Error(err)
	}
	if _, err := io.ReadAll(server.output); err == nil {
		t.Error("its output is still open")
	}
	again, err := takeLease(path)
	if err != nil {
		t.Errorf("its hold is still there: %v", err)
	}
	again.release()
}
