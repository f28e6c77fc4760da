package main

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"instantenv/init/internal/inittest"
)

func TestFileLease(t *testing.T) {
	path := inittest.Write(t, filepath.Join(t.TempDir(), "file"), "text")
	lease, err := takeLease(path)
	if err != nil {
		t.Skipf("no leases here: %v", err)
	}
	// Another program: a process may open what it holds a lease on.
	m, _ := testMachine(t)
	reader, err := m.processes.start([]string{"/bin/cat", path}, nil, []uintptr{0, 1, 2}, nil)
	if err != nil {
		t.Fatal(err)
	}
	select {
	case status := <-reader.exit:
		t.Fatalf("read it while it was leased: %s", describe(status))
	case <-time.After(300 * time.Millisecond):
	}
	lease.release()
	select {
	case status := <-reader.exit:
		if status != 0 {
			t.Fatal(describe(status))
		}
	case <-time.After(5 * time.Second):
		t.Fatal("still waits")
	}
}

func TestFileLeaseDoesNotShieldAWaiterFromSignals(t *testing.T) {
	path := inittest.Write(t, filepath.Join(t.TempDir(), "file"), "text")
	lease, err := takeLease(path)
	if err != nil {
		t.Skipf("no leases here: %v", err)
	}
	defer lease.release()
	m, _ := testMachine(t)
	reader, err := m.processes.start([]string{"/bin/cat", path}, nil, []uintptr{0, 1, 2}, nil)
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(100 * time.Millisecond)
	m.processes.signal(reader.pid, syscall.SIGKILL)
	select {
	case <-reader.exit:
	case <-time.After(5 * time.Second):
		t.Fatal("cannot be killed")
	}
}

func TestFileLeaseOfAnOpenFileIsRefused(t *testing.T) {
	path := inittest.Write(t, filepath.Join(t.TempDir(), "file"), "text")
	file, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for _, path := range []string{path, filepath.Join(t.TempDir(), "none")} {
		if lease, err := takeLease(path); err == nil {
			lease.release()
			t.Errorf("%s: a lease was granted", path)
		}
	}
}
