package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"instantenv/init/internal/imds"
	"instantenv/init/internal/inittest"
)

func TestPressed(t *testing.T) {
	event := func(kind, code uint16, value uint32) string {
		raw := make([]byte, inputEventSize)
		binary.NativeEndian.PutUint16(raw[16:], kind)
		binary.NativeEndian.PutUint16(raw[18:], code)
		binary.NativeEndian.PutUint32(raw[20:], value)
		return string(raw)
	}
	for _, test := range []struct{ name, events, want string }{
		{"power", event(evKey, keyPower, 1) + event(0, 0, 0), "[116]"},
		{"sleep", event(evKey, keySleep, 1) + event(0, 0, 0), "[142]"},
		{"after others", event(0, 0, 0) + event(evKey, 30, 1) + event(evKey, keyPower, 1), "[30 116]"},
		{"released", event(evKey, keyPower, 0), "[]"},
		{"another kind", event(2, keyPower, 1), "[]"},
		{"cut off", event(evKey, keyPower, 1)[:20], "[]"},
		{"nothing", "", "[]"},
	} {
		if got := fmt.Sprint(pressed([]byte(test.events))); got != test.want {
			t.Errorf("%s: %v", test.name, got)
		}
	}
}

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

func TestResumeDevice(t *testing.T) {
	for _, test := range []struct{ resume, offset, want, cause string }{
		{"259:2", "0", "/dev/nvme0n1p2", ""},
		{"259:2", "", "/dev/nvme0n1p2", ""},
		{"0:0", "0", "", "no resume="},
		{"259:2", "34816", "", "resume_offset"},
		{"259:9", "0", "", "resume device"},
		{"", "", "", "cannot hibernate"},
	} {
		sys := t.TempDir()
		if test.resume != "" {
			inittest.Write(t, filepath.Join(sys, "power", "resume"), test.resume+"\n")
		}
		if test.offset != "" {
			inittest.Write(t, filepath.Join(sys, "power", "resume_offset"), test.offset+"\n")
		}
		if err := os.MkdirAll(filepath.Join(sys, "dev", "block"), 0o755); err != nil {
			t.Fatal(err)
		}
		link := filepath.Join(sys, "dev", "block", "259:2")
		if err := os.Symlink("../../devices/pci/nvme0/nvme0n1/nvme0n1p2", link); err != nil {
			t.Fatal(err)
		}
		got, err := resumeDevice(sys)
		if got != test.want || (err == nil) != (test.cause == "") ||
			err != nil && !strings.Contains(err.Error(), test.cause) {
			t.Errorf("%+v: %q, %v", test, got, err)
		}
	}
}

func TestHibernationSwap(t *testing.T) {
	const named = "root=PARTUUID=1 resume=PARTUUID=2f5c6e1a-93d4-5b07-8a11-c0ffee00beef quiet"
	for _, test := range []struct {
		name, commandLine, answer string
		failure                   error
		swap, room                bool
	}{
		{"no resume=", "root=/dev/sda1", "true", nil, false, false},
		{"a file", "resume=/dev/sda2", "true", nil, false, false},
		{"not for hibernation", named, "false", nil, false, false},
		{"an older service", named, "", imds.ErrNotFound, false, false},
		{"for hibernation", named, "true\n", nil, true, true},
	} {
		ask := func(path string, _ time.Time) ([]byte, error) {
			if path != "/latest/meta-data/hibernation/configured" {
				t.Errorf("asked for %s", path)
			}
			return []byte(test.answer), test.failure
		}
		swap, err := hibernationSwap(t.TempDir(), test.commandLine, ask)
		if err != nil || (swap != nil) != test.swap || test.room && swap.Bytes < 64<<20 {
			t.Errorf("%s: %+v, %v", test.name, swap, err)
		}
	}
	broken := errors.New("no answer")
	ask := func(string, time.Time) ([]byte, error) { return nil, broken }
	if _, err := hibernationSwap(t.TempDir(), named, ask); !errors.Is(err, broken) {
		t.Errorf("grew without knowing: %v", err)
	}
	if _, err := hibernationSwap(t.TempDir(), "resume=PARTUUID=7", ask); err == nil {
		t.Error("7 is no UUID")
	}
}

func TestDiagnose(t *testing.T) {
	root := t.TempDir()
	inittest.Write(t, filepath.Join(root, "proc/meminfo"), "MemTotal:  991 kB\nMemFree: 3 kB\nMemAvailable:  87 kB\n")
	inittest.Write(t, filepath.Join(root, "sys/class/net/eth0/operstate"), "down\n")
	inittest.Write(t, filepath.Join(root, "sys/class/net/eth0/address"), "02:00:00:00:00:01\n")
	inittest.Write(t, filepath.Join(root, "sys/class/net/eth0/statistics/rx_packets"), "0\n")
	inittest.Write(t, filepath.Join(root, "sys/class/net/eth0/statistics/tx_packets"), "7\n")
	text := strings.Join(diagnose(root), "\n")
	for _, want := range []string{
		"memory: MemTotal: 991 kB, MemAvailable: 87 kB", "root: writable, ",
		"network: eth0 down 02:00:00:00:00:01, 0 packets received, 7 sent",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	diagnose("/") // on whatever this is
}

func TestStuckProcessesNamesOthers(t *testing.T) {
	if got := stuckProcesses(); strings.HasPrefix(got, "1 (") || !strings.Contains(got, "(") {
		t.Errorf("got %q", got)
	}
}
