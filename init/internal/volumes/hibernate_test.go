package volumes

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"instantenv/init/internal/imds"
	"instantenv/init/internal/inittest"
)

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
		got, err := ResumeDevice(sys)
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
