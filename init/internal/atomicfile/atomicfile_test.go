package atomicfile

import (
	"os"
	"path/filepath"
	"testing"
)

func TestWriteReplacesContentAndMode(t *testing.T) {
	self := Owner{os.Geteuid(), os.Getegid()}
	path := filepath.Join(t.TempDir(), "file")
	for _, step := range []struct {
		content string
		mode    os.FileMode
	}{{"first", 0o644}, {"second, longer", 0o600}, {"", 0o640}} {
		if err := Write(path, []byte(step.content), step.mode, self); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(path)
		if err != nil || string(got) != step.content {
			t.Fatalf("content %q, %v; want %q", got, err, step.content)
		}
		info, err := os.Stat(path)
		if err != nil || info.Mode().Perm() != step.mode {
			t.Fatalf("mode %v, %v; want %v", info.Mode(), err, step.mode)
		}
	}
	if entries, _ := os.ReadDir(filepath.Dir(path)); len(entries) != 1 {
		t.Fatalf("leftovers: %v", entries)
	}
}

func TestWriteDoesNotFollowASymlinkInItsWay(t *testing.T) {
	self := Owner{os.Geteuid(), os.Getegid()}
	directory := t.TempDir()
	victim := filepath.Join(directory, "victim")
	if err := os.WriteFile(victim, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(directory, "file")
	if err := os.Symlink(victim, path); err != nil {
		t.Fatal(err)
	}
	if err := Write(path, []byte("new"), 0o600, self); err != nil {
		t.Fatal(err)
	}
	if got, _ := os.ReadFile(victim); string(got) != "precious" {
		t.Fatalf("wrote through the symlink: %q", got)
	}
}

func TestWriteFailsWithoutItsDirectory(t *testing.T) {
	if err := Write(filepath.Join(t.TempDir(), "none", "file"), nil, 0o600, Root); !os.IsNotExist(err) {
		t.Fatalf("got %v, want not-exist", err)
	}
}

func TestWriteAllIsInOrderAndLeavesNothingBehind(t *testing.T) {
	self := Owner{os.Geteuid(), os.Getegid()}
	directory := t.TempDir()
	one, two := filepath.Join(directory, "one"), filepath.Join(directory, "two")
	write := func(second string) error {
		return WriteAll(File{one, []byte("1"), 0o644, self}, File{second, []byte("2"), 0o600, self})
	}
	if err := write(filepath.Join(directory, "none", "two")); !os.IsNotExist(err) {
		t.Fatalf("got %v, want not-exist", err)
	}
	if entries, _ := os.ReadDir(directory); len(entries) != 0 {
		t.Fatalf("the first was written though the second cannot be: %v", entries)
	}
	if err := write(two); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]struct {
		content string
		mode    os.FileMode
	}{one: {"1", 0o644}, two: {"2", 0o600}} {
		got, err := os.ReadFile(path)
		if err != nil || string(got) != want.content {
			t.Errorf("%s: %q, %v", path, got, err)
		}
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != want.mode {
			t.Errorf("%s: %v, %v", path, info, err)
		}
	}
	if entries, _ := os.ReadDir(directory); len(entries) != 2 {
		t.Fatalf("leftovers: %v", entries)
	}
}
