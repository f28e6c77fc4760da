package access

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"instantenv/init/internal/boottime"
	"instantenv/init/internal/inittest"
	"instantenv/init/internal/timeline"
)

func TestEnsureHostKeys(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("host keys belong to root")
	}
	directory := t.TempDir()
	content := func() string {
		text := ""
		for _, name := range []string{"ssh_host_ed25519_key", "ssh_host_ecdsa_key"} {
			if info, err := os.Stat(filepath.Join(directory, name)); err != nil || info.Mode().Perm() != 0o600 {
				t.Fatalf("%s: %v, %v", name, info, err)
			}
			text += inittest.Read(t, filepath.Join(directory, name)) + inittest.Read(t, filepath.Join(directory, name+".pub"))
		}
		return text
	}
	ensure := func() []string {
		made, err := EnsureHostKeys(directory, timeline.New(boottime.Now, true))
		if err != nil {
			t.Fatal(err)
		}
		return made
	}
	if made := ensure(); len(made) != 2 || !strings.Contains(made[0], "ssh_host_ed25519_key: ssh-ed25519 ") {
		t.Errorf("told of %q", made)
	}
	first := content()
	if made := ensure(); len(made) > 0 || content() != first {
		t.Fatalf("the second start made other host keys: %q", made)
	}
	// One that was lost does not change the machine's identity.
	if err := os.Truncate(filepath.Join(directory, "ssh_host_ecdsa_key"), 0); err != nil {
		t.Fatal(err)
	}
	if made := ensure(); len(made) > 0 {
		t.Fatalf("made others beside a whole one: %q", made)
	}
	// What a power failure may leave of keys that nobody has seen.
	inittest.Write(t, filepath.Join(directory, "ssh_host_ed25519_key"), first[:len(first)/4])
	if made := ensure(); len(made) != 2 || content() == first {
		t.Fatalf("no new keys in place of broken ones: %q", made)
	}
}

func TestPrintHostKeys(t *testing.T) {
	directory, console := t.TempDir(), filepath.Join(t.TempDir(), "console")
	inittest.Write(t, console, "")
	inittest.Write(t, filepath.Join(directory, "ssh_host_ed25519_key"), "secret\n")
	inittest.Write(t, filepath.Join(directory, "ssh_host_ed25519_key.pub"), "ssh-ed25519 AAAA instant-init\n")
	inittest.Write(t, filepath.Join(directory, "ssh_host_ecdsa_key.pub"), "ecdsa-sha2-nistp256 BBBB instant-init")
	if err := PrintHostKeys(directory, console); err != nil {
		t.Fatal(err)
	}
	const want = "-----BEGIN SSH HOST KEY KEYS-----\necdsa-sha2-nistp256 BBBB instant-init\n" +
		"ssh-ed25519 AAAA instant-init\n-----END SSH HOST KEY KEYS-----\n"
	if got := inittest.Read(t, console); got != want {
		t.Errorf("printed %q", got)
	}
}
