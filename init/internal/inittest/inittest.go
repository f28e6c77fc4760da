// Package inittest has what the tests of several packages need: files, a console to look at, keys, a metadata service.
package inittest

import (
	"bytes"
	"encoding/base64"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"instantenv/init/internal/sshkey"
)

// Key and OtherKey are lines of authorized_keys without a comment.
var (
	Key = "ssh-ed25519 " + base64.StdEncoding.EncodeToString(
		append([]byte("\x00\x00\x00\x0bssh-ed25519\x00\x00\x00\x20"), make([]byte, 32)...))
	OtherKey = strings.Replace(Key, "AAAAAAAAAAA", "AAAAAAAAAAB", 1)
)

// Keys parses lines of public keys.
func Keys(t *testing.T, text string) []sshkey.PublicKey {
	t.Helper()
	keys, err := sshkey.ParsePublicKeys(text)
	if err != nil {
		t.Fatal(err)
	}
	return keys
}

// Write makes a file and the directories above it, and returns its path.
func Write(t *testing.T, path, content string) string {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// Read returns a file's content.
func Read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// LongEnough is for what must happen, and happens within milliseconds unless the machine stands still.
const LongEnough = time.Minute

// WaitFor returns when the condition is true, and fails the test when it takes too long.
func WaitFor(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for end := time.Now().Add(LongEnough); !condition(); {
		if time.Now().After(end) {
			t.Fatalf("waited in vain for: %s", what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// A Buffer takes what several goroutines write.
type Buffer struct {
	mutex  sync.Mutex
	buffer bytes.Buffer
}

func (b *Buffer) Write(text []byte) (int, error) {
	b.mutex.Lock()
	defer b.mutex.Unlock()
	return b.buffer.Write(text)
}

func (b *Buffer) String() string {
	b.mutex.Lock()
	defer b.mutex.Unlock()
	return b.buffer.String()
}
