package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestRun(t *testing.T) {
	for _, test := range []struct {
		name           string
		args           []string
		status         int
		stdout, stderr string
	}{
		{"by hand", nil, 2, "", "first process of a machine"},
		{"unknown", []string{"reboot"}, 2, "", "key-agent | hand-over | login-keys USER | timeline | grow [MOUNT POINT] | --version"},
		{"too many", []string{"timeline", "now"}, 2, "", "key-agent"},
		{"version", []string{"--version"}, 0, "instant-init " + version, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			if got := run(test.args, 4711, &stdout, &stderr); got != test.status {
				t.Errorf("status %d, want %d", got, test.status)
			}
			if !strings.Contains(stdout.String(), test.stdout) || !strings.Contains(stderr.String(), test.stderr) {
				t.Errorf("stdout %q, stderr %q", stdout.String(), stderr.String())
			}
		})
	}
}

func TestPrintTimeline(t *testing.T) {
	var stdout, stderr bytes.Buffer
	path := filepath.Join(t.TempDir(), "timeline.json")
	if status := printTimeline(path, &stdout, &stderr); status != 1 || !strings.Contains(stderr.String(), "no timeline") {
		t.Fatalf("without a file: status %d, %q", status, stderr.String())
	}
	if err := os.WriteFile(path, []byte("{}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if status := printTimeline(path, &stdout, &stderr); status != 0 || stdout.String() != "{}\n" {
		t.Fatalf("status %d, %q", status, stdout.String())
	}
}

// The same source gives the same bytes, wherever it lies: the identity of a baked image rests on it.
func TestBuildIsReproducible(t *testing.T) {
	if testing.Short() {
		t.Skip("builds twice")
	}
	module, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	var binaries [2][]byte
	for i := range binaries {
		directory := t.TempDir()
		if err := os.CopyFS(filepath.Join(directory, "init"), os.DirFS(filepath.Join(module, "init"))); err != nil {
			t.Fatal(err)
		}
		text, err := os.ReadFile(filepath.Join(module, "go.mod"))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(directory, "go.mod"), text, 0o600); err != nil {
			t.Fatal(err)
		}
		output := filepath.Join(directory, "instant-init")
		build := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w -buildid=", "-o", output, "./init")
		build.Dir, build.Env = directory, append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off", "GOTOOLCHAIN=local")
		if message, err := build.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, message)
		}
		if binaries[i], err = os.ReadFile(output); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(binaries[0], binaries[1]) {
		t.Fatalf("two builds of %d and %d bytes differ", len(binaries[0]), len(binaries[1]))
	}
	t.Logf("%d bytes", len(binaries[0])) // a figure, not a test: it differs by 0.5 MB between Go 1.26 and 1.27
}
