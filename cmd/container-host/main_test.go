package main

import (
	"encoding/json"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"instantenv/internal/containerhost/runner"
)

// service stands in for the one behind the socket.
type service struct {
	changes map[string]runner.Change
	outcome any
	status  int
}

func (s *service) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var change runner.Change
	if r.Method == http.MethodPost {
		_ = json.NewDecoder(r.Body).Decode(&change)
	}
	s.changes[r.URL.Path] = change
	w.WriteHeader(s.status)
	_ = json.NewEncoder(w).Encode(s.outcome)
}

func call(t *testing.T, served *service, stdin string, arguments ...string) (status int, stdout, stderr string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "socket")
	if served != nil {
		listener, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		served.changes = map[string]runner.Change{}
		server := &http.Server{Handler: served}
		go server.Serve(listener) //nolint:errcheck // ErrServerClosed
		defer server.Close()
	}
	var out, err strings.Builder
	status = command(arguments, strings.NewReader(stdin), &out, &err, path)
	return status, out.String(), err.String()
}

func TestUpdate(t *testing.T) {
	served := &service{status: 200, outcome: runner.Outcome{OK: true, Tag: "v2", GapMS: 12.4, ProbeMS: 10, TookMS: 900}}
	status, stdout, stderr := call(t, served, "", "update", "--pull", "v2")
	if status != 0 || stdout != "v2 runs, after 900 ms; gap 12 ms, tried every 10 ms\n" {
		t.Error(status, stdout, stderr)
	}
	if change := served.changes["/update"]; change.Tag != "v2" || !change.Pull {
		t.Errorf("%+v", change)
	}
	served.outcome = runner.Outcome{Tag: "v3", Error: "status 500", Logs: "cannot bind"}
	if status, _, stderr = call(t, served, "", "update", "v3"); status != 1 || !strings.Contains(stderr, "status 500\nits last lines:\ncannot bind") {
		t.Error(status, stderr)
	}
	served.status, served.outcome = 409, map[string]string{"error": "the runner is busy"}
	if status, _, stderr = call(t, served, "", "update", "v3"); status != 1 || stderr != "container-host: the runner is busy\n" {
		t.Error(status, stderr)
	}
}

func TestEnvironment(t *testing.T) {
	served := &service{status: 200, outcome: runner.Outcome{OK: true, Tag: "v1", GapMS: -1}}
	status, stdout, stderr := call(t, served, "A=1\nB=2\n", "environment")
	if status != 0 || string(served.changes["/environment"].Environment) != "A=1\nB=2\n" {
		t.Errorf("%d %q %+v", status, stderr, served.changes)
	}
	if !strings.Contains(stdout, "no port is published") {
		t.Error(stdout)
	}
	if status, _, _ = call(t, served, strings.Repeat("a", environmentMost+1), "environment"); status != 1 || len(served.changes) != 0 {
		t.Error("one that is too large was sent")
	}
}

func TestStatus(t *testing.T) {
	served := &service{status: 200, outcome: runner.Status{Image: "a", Tag: "v1", State: runner.Healthy}}
	status, stdout, _ := call(t, served, "", "status", "--json")
	var printed runner.Status
	if err := json.Unmarshal([]byte(stdout), &printed); err != nil || status != 0 || printed.Tag != "v1" {
		t.Error(status, stdout, err)
	}
	served.outcome = runner.Status{Image: "a", Tag: "v1", State: runner.Waiting, Reason: "ended"}
	if status, stdout, _ = call(t, served, "", "status"); status != 1 || !strings.Contains(stdout, "a:v1 is waiting") {
		t.Error(status, stdout)
	}
}

func TestTheWrongWay(t *testing.T) {
	for _, arguments := range [][]string{
		{}, {"start"}, {"update"}, {"update", "-v"}, {"update", "a b"}, {"update", "v1", "--pull"}, {"status", "--yaml"},
	} {
		if status, _, stderr := call(t, nil, "", arguments...); status != 2 || !strings.HasPrefix(stderr, "usage:") {
			t.Errorf("%q: %d %s", arguments, status, stderr)
		}
	}
	if status, _, stderr := call(t, nil, "", "status"); status != 1 || !strings.Contains(stderr, "does not answer at") {
		t.Error(status, stderr)
	}
}
