package main

import (
	"bytes"
	"debug/pe"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestCommandLine(t *testing.T) {
	for name, c := range map[string]struct {
		arguments []string
		want      string
	}{
		"nothing":      {nil, "usage: "},
		"unknown verb": {[]string{"bake"}, "usage: "},
		"missing flag": {[]string{"uki", "--stub", "x"}, "wrong command line: --stub, --kernel"},
		"unknown flag": {[]string{"uki", "--colour"}, "wrong command line: flag provided"},
		"left over":    {[]string{"uki", "--stub", "x", "y"}, `unexpected "y"`},
		"no such file": {[]string{"uki", "--stub", "/nonexistent", "--kernel", "k", "--cmdline", "c", "--output", "o"}, "no such file"},
	} {
		var stderr bytes.Buffer
		if status := run(c.arguments, &stderr, &stderr); status != exitError || !strings.Contains(stderr.String(), c.want) {
			t.Errorf("%s: exit status %d, %q", name, status, stderr.String())
		}
	}
}

// TestUKIVerb makes an image of systemd's own stub, where it is installed, with the stub as the kernel, too.
func TestUKIVerb(t *testing.T) {
	const stub = "/usr/lib/systemd/boot/efi/linuxx64.efi.stub"
	if _, err := os.Stat(stub); err != nil {
		t.Skip("systemd's EFI stub is not installed")
	}
	directory := t.TempDir()
	release, output := filepath.Join(directory, "os-release"), filepath.Join(directory, "uki.efi")
	if err := os.WriteFile(release, []byte("ID=x\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	arguments := []string{
		"uki", "--stub", stub, "--kernel", stub, "--cmdline", "a=b", "--os-release", release, "--output", output,
	}
	if status := run(arguments, &out, &out); status != exitOK {
		t.Fatalf("exit status %d: %s", status, out.String())
	}
	file, err := pe.Open(output)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	kernel, err := os.ReadFile(stub)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{".cmdline": "a=b", ".osrel": "ID=x\n", ".linux": string(kernel)} {
		section := file.Section(name)
		if section == nil {
			t.Errorf("no section %s", name)
			continue
		}
		if data, err := section.Data(); err != nil || !strings.HasPrefix(string(data), want) {
			t.Errorf("%s holds %.40q, %v", name, data, err)
		}
	}
}
