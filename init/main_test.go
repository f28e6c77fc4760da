package main

import (
	"bytes"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"instantenv/init/internal/phases"
)

func TestRun(t *testing.T) {
	for _, test := range []struct {
		name           string
		args           []string
		status         int
		stdout, stderr string
	}{
		{"by hand", nil, 2, "", "first process of a machine"},
		{"unknown", []string{"reboot"}, 2, "", "phase NAME running|done|failed [REASON] | await NAME [SECONDS] | --version"},
		{"a phase without a state", []string{"phase", "ready"}, 1, "", "a phase is running, done or failed"},
		{"a phase that is quoted badly", []string{"phase", "ready", "failed", "no", "space"}, 2, "", "key-agent"},
		{"patience that is no number", []string{"await", "ready", "long"}, 2, "", "key-agent"},
		{"a second name", []string{"await", "ready", "1", "mounted"}, 2, "", "key-agent"},
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

func TestPhases(t *testing.T) {
	book := phases.Book(t.TempDir())
	for _, step := range []struct {
		args   []string
		status int
		stderr string
	}{
		{[]string{"await", "ready", "0"}, 1, "ready is not begun"},
		{[]string{"phase", "ready", "running"}, 0, ""},
		{[]string{"phase", "ready", "failed", "no answer on port 80"}, 0, "ready failed: no answer on port 80"},
		{[]string{"await", "ready"}, 1, "ready failed: no answer on port 80"},
		{[]string{"phase", "ready", "done"}, 0, ""},
		{[]string{"await", "ready"}, 0, ""},
	} {
		var stderr bytes.Buffer
		if status := phase(book, "", step.args, &stderr); status != step.status || !strings.Contains(stderr.String(), step.stderr) {
			t.Errorf("%q: status %d, %q", step.args, status, stderr.String())
		}
		if step.stderr == "" && stderr.Len() > 0 {
			t.Errorf("%q: %q", step.args, stderr.String())
		}
	}
}

func TestAFailedPhaseIsOnTheConsole(t *testing.T) {
	console := filepath.Join(t.TempDir(), "console")
	if err := os.WriteFile(console, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	phase(phases.Book(t.TempDir()), console, []string{"phase", "ready", "failed", "no space"}, io.Discard)
	text, err := os.ReadFile(console)
	if err != nil || string(text) != "instant-init: ready failed: no space\n" {
		t.Errorf("%q, %v", text, err)
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
