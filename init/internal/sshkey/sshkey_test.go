package sshkey

import (
	"bytes"
	"encoding/base64"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func encoded(kind string) string {
	return base64.StdEncoding.EncodeToString(pack([]byte(kind), make([]byte, 32)))
}

func TestParsePublicKey(t *testing.T) {
	body := encoded("ssh-ed25519")
	for _, test := range []struct{ name, line, want string }{
		{"plain", "ssh-ed25519 " + body, "ssh-ed25519 " + body},
		{"comment of several words", "ssh-ed25519 " + body + "  me at home \n", "ssh-ed25519 " + body + " me at home"},
		{"another type", "sk-x@openssh.com " + encoded("sk-x@openssh.com") + " k", "sk-x@openssh.com " + encoded("sk-x@openssh.com") + " k"},
		{"options", `command="id" ssh-ed25519 ` + body, ""},
		{"type inside differs", "ssh-rsa " + body, ""},
		{"no body", "ssh-ed25519", ""},
		{"body is not base64", "ssh-ed25519 !!!!", ""},
		{"body without key material", "ssh-ed25519 " + base64.StdEncoding.EncodeToString(pack([]byte("ssh-ed25519"))), ""},
		{"length beyond the end", "ssh-ed25519 /////3NzaA==", ""},
		{"control character", "ssh-ed25519 " + body + " a\x1bb", ""},
		{"second line in the comment", "ssh-ed25519 " + body + " a\nssh-ed25519 x", ""},
		{"second line in the body", "ssh-ed25519 " + body + "\ncert-authority ssh-ed25519 " + body, ""},
		{"body wrapped", "ssh-ed25519 " + body[:8] + "\n" + body[8:], ""},
		{"HTML", "<html>404</html>", ""},
		{"empty", "", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			key, err := ParsePublicKey(test.line)
			if test.want == "" {
				if err == nil {
					t.Fatalf("accepted as %q", key)
				}
				return
			}
			if err != nil || key.String() != test.want {
				t.Fatalf("got %q, %v; want %q", key, err, test.want)
			}
		})
	}
}

func TestMerge(t *testing.T) {
	mine := "ssh-ed25519 " + encoded("ssh-ed25519")
	other := "ssh-rsa " + encoded("ssh-rsa")
	keys, err := ParsePublicKeys("# from EC2\n\n" + mine + " launch\n")
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct{ name, content, want string }{
		{"empty", "", mine + " launch\n"},
		{"there already, other comment", mine + " old\n", mine + " old\n"},
		{"another key stays", other + " x\n", other + " x\n" + mine + " launch\n"},
		{"last line without its end", other, other + "\n" + mine + " launch\n"},
		{"with options it is not the same", "restrict " + mine + "\n", "restrict " + mine + "\n" + mine + " launch\n"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := Merge(test.content, keys); got != test.want {
				t.Fatalf("got %q, want %q", got, test.want)
			}
		})
	}
	if _, err := ParsePublicKeys("\n# nothing\n"); err == nil {
		t.Error("no key at all was accepted")
	}
}

func TestMpint(t *testing.T) {
	for _, test := range []struct{ in, want []byte }{
		{[]byte{0, 0, 1, 2}, []byte{1, 2}},
		{[]byte{0x80, 1}, []byte{0, 0x80, 1}},
		{[]byte{0, 0x80}, []byte{0, 0x80}},
		{[]byte{0x7f}, []byte{0x7f}},
	} {
		if got := mpint(test.in); !bytes.Equal(got, test.want) {
			t.Errorf("mpint(%v) = %v, want %v", test.in, got, test.want)
		}
	}
}

// OpenSSH itself is the judge: it must read the private key and derive the same public key from it. Many keys,
// because a leading zero or a set top bit in the scalar comes only now and then.
func TestHostKeysAreReadByOpenSSH(t *testing.T) {
	keygen, err := exec.LookPath("ssh-keygen")
	if err != nil {
		t.Skip("no ssh-keygen here")
	}
	for range 8 {
		keys, err := GenerateHostKeys()
		if err != nil {
			t.Fatal(err)
		}
		for _, key := range keys {
			path := filepath.Join(t.TempDir(), key.File)
			if err := os.WriteFile(path, key.Private, 0o600); err != nil {
				t.Fatal(err)
			}
			derived, err := exec.Command(keygen, "-y", "-P", "", "-f", path).CombinedOutput()
			if err != nil {
				t.Fatalf("%s: %v: %s", key.File, err, derived)
			}
			if got, want := strings.TrimSpace(string(derived)), strings.TrimSpace(string(key.Public)); got != want {
				t.Fatalf("%s: OpenSSH derives %q, we say %q", key.File, got, want)
			}
		}
	}
}

func TestHostKeysDiffer(t *testing.T) {
	first, _ := GenerateHostKeys()
	second, _ := GenerateHostKeys()
	for i := range first {
		if bytes.Equal(first[i].Public, second[i].Public) {
			t.Fatalf("%s came twice", first[i].File)
		}
	}
}
