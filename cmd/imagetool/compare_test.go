package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestCompare: two small disks that are the same but for one thing of each kind.
func TestCompare(t *testing.T) {
	needMounts(t)
	t.Setenv("PATH", os.Getenv("PATH")+":/usr/sbin:/sbin")
	tools(t, "mkfs.ext4", "debugfs")
	files := []plant{
		{path: "etc/same", content: "same"},
		{path: "etc/content", content: "a"},
		{path: "etc/mode", content: "x"},
		{path: "etc/owner", content: "x"},
		{path: "etc/gone", content: "x"},
		{path: "etc/file-or-link", content: "x"},
		{path: "var/lib/rpm/rpmdb.sqlite", content: "a"},
		{path: "usr/lib/sysimage/rpm/rpmdb.sqlite", content: "x"},
	}
	disk := func(things []plant, commands string) string {
		path := filepath.Join(t.TempDir(), "disk")
		command(t, "", "mkfs.ext4", "-q", "-d", plantTree(t, things), path, "16M")
		command(t, commands, "debugfs", "-w", "-f", "-", path)
		return path
	}
	first := disk(files, "cd dev\nmknod null c 1 3\n")
	again := disk(files, "cd dev\nmknod null c 1 3\n")
	changed := slices.Clone(files)
	changed[1].content, changed[2].mode, changed[6].content, changed[7].mode = "b", 0o600, "b", 0o600
	changed[4].path = "etc/new"
	other := disk(changed, "sif etc/owner uid 7\nrm etc/file-or-link\nsymlink etc/file-or-link same\ncd dev\nmknod null c 1 5\n")

	compare := func(wantStatus int, a, b string) comparison {
		t.Helper()
		var stdout, stderr bytes.Buffer
		if status := run([]string{"compare", "--json", "--a", a, "--b", b}, &stdout, &stderr); status != wantStatus {
			t.Fatalf("exit status %d, want %d: %s%s", status, wantStatus, stdout.String(), stderr.String())
		}
		var result comparison
		if err := json.Unmarshal(stdout.Bytes(), &result); err != nil {
			t.Fatal(err)
		}
		return result
	}
	if result := compare(exitOK, first, again); len(result.Differences) > 0 || result.Files < 10 {
		t.Errorf("the same, and yet: %+v", result)
	}
	var found []string
	for _, d := range compare(exitFindings, first, other).Differences {
		mark := ""
		if d.Expected != "" {
			mark = " (expected)"
		}
		found = append(found, d.Path+": "+strings.Join(d.What, ", ")+mark)
	}
	want := []string{
		"/dev/null: device", "/etc/content: content", "/etc/file-or-link: type", "/etc/gone: only in a",
		"/etc/mode: mode", "/etc/new: only in b", "/etc/owner: owner",
		"/usr/lib/sysimage/rpm/rpmdb.sqlite: mode", "/var/lib/rpm/rpmdb.sqlite: content (expected)",
	}
	if !slices.Equal(found, want) {
		t.Errorf("found %q\nwant  %q", found, want)
	}
	onlyExpected := slices.Clone(files)
	onlyExpected[6].content = "b"
	if result := compare(exitOK, first, disk(onlyExpected, "cd dev\nmknod null c 1 3\n")); len(result.Differences) != 1 {
		t.Errorf("one expected difference, and yet: %+v", result)
	}
}

func TestExpectedDifferencesAreDocumented(t *testing.T) {
	var table bytes.Buffer
	if status := run([]string{"compare", "--expected"}, &table, os.Stderr); status != exitOK {
		t.Fatalf("exit status %d", status)
	}
	document, err := os.ReadFile("../../docs/reproducibility.md")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(document), table.String()) {
		t.Errorf("docs/reproducibility.md has another table; it should be\n%s", table.String())
	}
}
