package boot

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"instantenv/init/internal/inittest"
)

// forcedBreak is when the kernel ends a lease by itself (/proc/sys/fs/lease-break-time): what is due to us comes earlier.
const forcedBreak = 45 * time.Second

// startReader reads the file in a process of its own: a process may open what it holds a lease on.
func startReader(t *testing.T, path string) (reader *exec.Cmd, ended <-chan error) {
	t.Helper()
	reader = exec.Command("/bin/cat", path)
	if err := reader.Start(); err != nil {
		t.Fatal(err)
	}
	results := make(chan error, 1)
	go func() { results <- reader.Wait() }()
	return reader, results
}

func TestFileLease(t *testing.T) {
	path := inittest.Write(t, filepath.Join(t.TempDir(), "file"), "text")
	lease, err := takeLease(path)
	if err != nil {
		t.Skipf("no leases here: %v", err)
	}
	_, ended := startReader(t, path)
	select {
	case err := <-ended:
		t.Fatalf("read it while it was leased: %v", err)
	case <-time.After(300 * time.Millisecond):
	}
	lease.release()
	select {
	case err := <-ended:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(forcedBreak / 2):
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
	reader, ended := startReader(t, path)
	time.Sleep(100 * time.Millisecond)
	_ = reader.Process.Kill()
	select {
	case <-ended:
	case <-time.After(forcedBreak / 2):
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
