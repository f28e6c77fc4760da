package host_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"instantenv/internal/containerhost/config"
	"instantenv/internal/containerhost/host"
)

func TestAnEnvironmentIsReadAsDockerDoes(t *testing.T) {
	got, err := host.ParseEnvironment("# comment\n\nA=1\r\n  B=two words\nHASH=$argon2id$v=19$m=65536\nQUOTED=\"x\"\nEMPTY=\n")
	want := []string{"A=1", "B=two words", "HASH=$argon2id$v=19$m=65536", `QUOTED="x"`, "EMPTY="}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%q, %v", got, err)
	}
	for _, text := range []string{"A=1\nsecret", "=secret", "secret name=1", "A=\x00secret"} {
		if _, err := host.ParseEnvironment(text); err == nil || strings.Contains(err.Error(), "secret") {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestAnEnvironmentIsKeptForRootAlone(t *testing.T) {
	machine := host.New()
	machine.EnvironmentFile = filepath.Join(t.TempDir(), "environment")
	settings := config.Config{Environment: config.EnvironmentSSH}
	if _, err := machine.Environment(t.Context(), settings); err == nil || !strings.Contains(err.Error(), "container-host environment") {
		t.Errorf("%v does not say what to do", err)
	}
	if err := machine.SaveEnvironment([]byte("A=1\n")); err != nil {
		t.Fatal(err)
	}
	if machine.SaveEnvironment([]byte("no variable")) == nil {
		t.Error("an invalid one was kept")
	}
	got, err := machine.Environment(t.Context(), settings)
	if err != nil || !slices.Equal(got, []string{"A=1"}) {
		t.Errorf("%q, %v", got, err)
	}
	about, err := os.Stat(machine.EnvironmentFile)
	if err != nil || about.Mode() != 0o600 {
		t.Errorf("%v, %v", about.Mode(), err)
	}
	if got, err := machine.Environment(t.Context(), config.Config{Environment: config.EnvironmentNone}); err != nil || got != nil {
		t.Errorf("none is %q, %v", got, err)
	}
}

func TestCheck(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/moved":
			http.Redirect(w, r, "/broken", http.StatusFound)
		case "/broken":
			w.WriteHeader(http.StatusServiceUnavailable)
		case "/hangs":
			<-r.Context().Done()
		}
	}))
	defer server.Close()
	machine := host.New()
	for path, good := range map[string]bool{"/": true, "/moved": true, "/broken": false} {
		if err := machine.Check(t.Context(), server.URL+path); (err == nil) != good {
			t.Errorf("%s: %v", path, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if machine.Check(ctx, server.URL+"/hangs") == nil {
		t.Error("one that hangs is good")
	}
	tcp := strings.Replace(server.URL, "http", "tcp", 1)
	if err := machine.Check(t.Context(), tcp); err != nil {
		t.Error(err)
	}
	server.Close()
	if machine.Check(t.Context(), tcp) == nil {
		t.Error("nobody listens, and it is good")
	}
}

func TestAPhaseIsRecordedWhenItChanges(t *testing.T) {
	machine := host.New()
	var records []string
	fails := false
	machine.Record = func(name, state, reason string) error {
		records = append(records, fmt.Sprint(name, " ", state, " ", reason))
		if fails {
			return fmt.Errorf("no such program")
		}
		return nil
	}
	machine.Phase("a", "failed", "why")
	machine.Phase("a", "failed", "why")
	machine.Phase("a", "done", "")
	fails = true
	machine.Phase("b", "done", "")
	machine.Phase("b", "done", "")
	want := []string{"a failed why", "a done ", "b done ", "b done "}
	if !slices.Equal(records, want) {
		t.Errorf("%q", records)
	}
}
