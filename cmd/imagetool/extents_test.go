package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"instantenv/internal/secrets/secretstest"
)

// TestSecretsAcrossExtents: a file whose blocks lie apart has a key across each place where two of them meet. The device
// does not hold any of these keys in one piece.
func TestSecretsAcrossExtents(t *testing.T) {
	needMounts(t)
	t.Setenv("PATH", os.Getenv("PATH")+":/usr/sbin:/sbin")
	tools(t, "mkfs.ext4", "debugfs")
	const block, joints = 4096, 20
	directory := t.TempDir()
	tree, disk, file := filepath.Join(directory, "tree"), filepath.Join(directory, "disk"), filepath.Join(directory, "file")
	if err := os.Mkdir(tree, 0o755); err != nil {
		t.Fatal(err)
	}
	var script strings.Builder
	for i := range 4 * joints { // files of one block each, of which every other one goes
		name := fmt.Sprintf("filler%03d", i)
		if err := os.WriteFile(filepath.Join(tree, name), bytes.Repeat([]byte{'.'}, block), 0o600); err != nil {
			t.Fatal(err)
		}
		if i%2 == 0 {
			fmt.Fprintf(&script, "rm /%s\n", name)
		}
	}
	content := bytes.Repeat([]byte{'\n'}, (joints+1)*block)
	var want []int64
	for i := range joints {
		key := secretstest.Ed25519Key(t)
		start := (i+1)*block - 22 - i%10 // some of PRIVATE KEY is in the block before
		copy(content[start:], key)
		want = append(want, int64(start+strings.Index(key, "PRIVATE KEY-----")))
	}
	if err := os.WriteFile(file, content, 0o600); err != nil {
		t.Fatal(err)
	}
	command(t, "", "mkfs.ext4", "-q", "-b", fmt.Sprint(block), "-d", tree, disk, "24M")
	command(t, script.String()+"write "+file+" apart\n", "debugfs", "-w", "-f", "-", disk)

	if found, _ := auditOf(t, exitOK, "--device", disk, "--raw-only"); found != nil {
		t.Fatalf("the blocks lie together: %v", found)
	}
	_, result := auditOf(t, exitFindings, "--device", disk)
	var offsets []int64
	for _, f := range result.Findings {
		if f.Rule == "private-key" && f.Path == "/apart" {
			offsets = append(offsets, *f.Offset)
		}
	}
	if !slices.Equal(offsets, want) {
		t.Errorf("found at %v\nwant %v", offsets, want)
	}
}

// TestJoints: parts around the places where extents meet, none of which is read twice.
func TestJoints(t *testing.T) {
	at := func(logical, length int64) extent { return extent{logical: logical, length: length} }
	for name, c := range map[string]struct {
		extents []extent
		want    []part
	}{
		"one":            {[]extent{at(0, 1<<20)}, nil},
		"two":            {[]extent{at(0, 1<<20), at(1<<20, 1<<20)}, []part{{1<<20 - 8<<10, 1<<20 + 4<<10}}},
		"short ones":     {[]extent{at(0, 4096), at(4096, 4096), at(8192, 4096)}, []part{{0, 12288}}},
		"around a hole":  {[]extent{at(0, 4096), at(1<<20, 4096)}, []part{{0, 8192}, {1<<20 - 8<<10, 1<<20 + 4<<10}}},
		"of odd lengths": {[]extent{at(0, 1<<20+1024), at(1<<20+1024, 4096)}, []part{{1<<20 - 8<<10, 1<<20 + 4<<10}}},
	} {
		if found := joints(c.extents); !slices.Equal(found, c.want) {
			t.Errorf("%s: %v, want %v", name, found, c.want)
		}
	}
}
