package shutdown

import (
	"strings"
	"testing"
	"time"
)

func TestForeignMounts(t *testing.T) {
	got := foreignMounts("/dev/root / ext4 rw 0 0\nproc /proc proc rw 0 0\n/dev/nvme1n1 /data xfs rw 0 0\n" +
		"/dev/nvme1n1p2 /data/my\\040disk ext4 rw 0 0\ntmpfs /tmp tmpfs rw 0 0\n" +
		"overlay /var/lib/docker/x overlay rw 0 0\ndevtmpfs /dev devtmpfs rw 0 0\n\n")
	if strings.Join(got, "|") != "/data|/data/my disk|/var/lib/docker/x" {
		t.Fatalf("got %q", got)
	}
}

func TestUnescapeMount(t *testing.T) {
	for path, want := range map[string]string{
		"/data": "/data", `/a\040b\011c\012`: "/a b\tc\n", `/back\134040`: `/back\040`, `/\043x`: "/#x",
		`/cut\04`: "/cut04", "": "",
	} {
		if got := unescapeMount(path); got != want {
			t.Errorf("%q: got %q", path, got)
		}
	}
}

func TestThePartsOfAShutdownFitIntoTheWhole(t *testing.T) {
	parts := servicesLimit + termGrace + killGrace + syncLimit + swapLimit + unmountsLimit + unmountLimit
	if parts > shutdownLimit || shutdownLimit > 10*time.Second {
		t.Errorf("%s in %s", parts, shutdownLimit)
	}
}

func TestWithTimeout(t *testing.T) {
	if !withTimeout(20*time.Second, func() {}) {
		t.Error("work that returns counts as hanging")
	}
	hang := make(chan struct{})
	defer close(hang)
	if withTimeout(time.Millisecond, func() { <-hang }) || withTimeout(-time.Second, func() { <-hang }) {
		t.Error("work that hangs counts as done")
	}
}

func TestStuckProcessesNamesOthers(t *testing.T) {
	if got := stuckProcesses(); strings.HasPrefix(got, "1 (") || !strings.Contains(got, "(") {
		t.Errorf("got %q", got)
	}
}

func TestASlowFileSystemHasTheTimeThatIsLeft(t *testing.T) {
	for left, want := range map[time.Duration]time.Duration{
		6 * time.Second:        3 * time.Second, // nothing hung before
		unmountsLimit:          500 * time.Millisecond,
		400 * time.Millisecond: unmountLimit,
		200 * time.Millisecond: 200 * time.Millisecond,
		-time.Second:           0,
	} {
		if got := share(left); got != want {
			t.Errorf("share(%s) = %s, want %s", left, got, want)
		}
	}
}
