package access

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"instantenv/init/internal/inittest"
)

// program is a shell script that stands for instant-ssm.
func program(t *testing.T, script string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "ssm")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+script), 0o700); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestAdmitParameter(t *testing.T) {
	for _, test := range []struct{ name, script, want, said string }{
		{name: "keys", script: `[ "$*" = /team/keys ] && echo "` + inittest.Key + ` a"`, want: inittest.Key + " a\n"},
		{name: "more than a pipe holds", script: `echo "` + inittest.Key + `"; yes "# x" | head -c 300000`, want: inittest.Key + "\n"},
		{name: "none, and a status", script: "exit 1", said: "SSH keys of parameter /team/keys: "},
		{name: "keys, and a status", script: `echo "` + inittest.Key + `"; exit 1`, said: "exit status 1"},
		{name: "no keys", script: "echo hello", said: "not a public key"},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, client := inittest.Serve(t, nil)
			var log bytes.Buffer
			a := admissionTo(t, client, &log)
			a.AdmitParameter(program(t, test.script), "/team/keys", RunChild)
			content, _ := os.ReadFile(a.User.keyFile())
			if string(content) != test.want || !strings.Contains(log.String(), test.said) {
				t.Errorf("authorized_keys %q, log %q", content, log.String())
			}
		})
	}
	_, client := inittest.Serve(t, nil)
	var log bytes.Buffer
	admissionTo(t, client, &log).AdmitParameter("/nonexistent/instant-ssm", "/team/keys", RunChild)
	if !strings.Contains(log.String(), "no such file") {
		t.Errorf("log %q", log.String())
	}
}
