package main

import (
	"bytes"
	"crypto/md5"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"instantenv/internal/secrets"
	"instantenv/internal/secrets/secretstest"
)

const rootOffset = 4 << 20

// tools are what a test needs of the host; without them it is skipped, with a word why.
func tools(t *testing.T, names ...string) {
	t.Helper()
	for _, name := range names {
		if _, err := exec.LookPath(name); err != nil {
			t.Skipf("%s is not installed", name)
		}
	}
}

func command(t *testing.T, stdin string, name string, args ...string) {
	t.Helper()
	c := exec.Command(name, args...)
	c.Stdin = strings.NewReader(stdin)
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", name, err, out)
	}
}

// makeDisk writes a disk image with a small first partition and an ext4 root made of files; deleted
// ones are removed after the file system was made, so that their bytes stay.
func makeDisk(t *testing.T, files map[string]string, deleted ...string) string {
	t.Helper()
	t.Setenv("PATH", os.Getenv("PATH")+":/usr/sbin:/sbin")
	tools(t, "sfdisk", "mkfs.ext4", "debugfs")
	directory := t.TempDir()
	tree, root, disk := filepath.Join(directory, "tree"), filepath.Join(directory, "root"), filepath.Join(directory, "disk")
	for name, content := range files {
		path := filepath.Join(tree, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	command(t, "", "mkfs.ext4", "-q", "-d", tree, root, "24M")
	for _, name := range deleted {
		command(t, "", "debugfs", "-w", "-R", "rm /"+name, root)
	}
	content, err := os.ReadFile(root)
	if err != nil {
		t.Fatal(err)
	}
	image := make([]byte, rootOffset+len(content)+1<<20)
	copy(image[rootOffset:], content)
	if err := os.WriteFile(disk, image, 0o600); err != nil {
		t.Fatal(err)
	}
	command(t, "label: gpt\nstart=2048,size=2048,type=uefi\n"+fmt.Sprintf("start=%d,size=%d,type=linux\n",
		rootOffset/512, len(content)/512), "sfdisk", "-q", disk)
	return disk
}

// auditOf runs the verb and gives the findings as rule@path or rule@raw, in order.
func auditOf(t *testing.T, wantStatus int, args ...string) ([]string, *report) {
	t.Helper()
	var stdout, stderr bytes.Buffer
	if status := run(append([]string{"audit", "--json"}, args...), &stdout, &stderr); status != wantStatus {
		t.Fatalf("exit status %d, want %d: %s %s", status, wantStatus, stdout.String(), stderr.String())
	}
	var result report
	if err := json.Unmarshal(stdout.Bytes(), &result); err != nil {
		t.Fatalf("%v in %s", err, stdout.String())
	}
	var found []string
	for _, f := range result.Findings {
		place := f.Path
		if f.Where == "raw" {
			place = "raw"
		}
		found = append(found, f.Rule+"@"+place)
	}
	return found, &result
}

func needMounts(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	if _, err := os.Stat("/dev/loop-control"); err != nil {
		t.Skip("no loop devices")
	}
}

func TestAudit(t *testing.T) {
	needMounts(t)
	key, deleted, late, shipped := secretstest.Ed25519Key(t), secretstest.Ed25519Key(t), secretstest.Ed25519Key(t), secretstest.RSAKey(t)
	const canary = "AAAAC3NzaC1lZDI1NTE5AAAAIBakersOwnKeyOfThisRun"
	vendor := "self test\n" + shipped
	sum := md5.Sum([]byte(vendor))
	disk := makeDisk(t, map[string]string{
		"etc/ssh/ssh_host_ed25519_key":    key,
		"etc/machine-id":                  "",
		"home/admin/.ssh/authorized_keys": "ssh-ed25519 " + canary + " bake\n",
		"root/deleted":                    deleted,
		"srv/pieces":                      "start" + strings.Repeat("\x00", 64<<10) + late, // mkfs makes a hole
		"usr/lib/libtls.so":               vendor,
		"usr/lib/libtls.pyc":              "made from it " + shipped,
		"var/lib/dpkg/info/tls.md5sums":   hex.EncodeToString(sum[:]) + "  usr/lib/libtls.so\n",
	}, "root/deleted")

	found, result := auditOf(t, exitFindings, "--device", disk, "--forbid", canary)
	want := []string{
		"host-key@/etc/ssh/ssh_host_ed25519_key", "private-key@/etc/ssh/ssh_host_ed25519_key",
		"authorized-keys@/home/admin/.ssh/authorized_keys", "forbidden@/home/admin/.ssh/authorized_keys",
		"private-key@/srv/pieces", "private-key@raw",
	}
	if !slices.Equal(found, want) {
		t.Errorf("found %v\nwant %v", found, want)
	}
	if result.Filesystem != "ext4" || result.Files != 7 || result.PublicKeys != 2 {
		t.Errorf("%s, %d files, %d public keys", result.Filesystem, result.Files, result.PublicKeys)
	}
	info, err := os.Stat(disk)
	if err != nil || result.BytesScanned != info.Size() {
		t.Errorf("%d bytes scanned of %d", result.BytesScanned, info.Size())
	}
	image, err := os.ReadFile(disk)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range result.Findings {
		if f.Where == "raw" && f.Rule == "private-key" && !bytes.HasPrefix(image[*f.Offset:], []byte("PRIVATE KEY-----")) {
			t.Errorf("nothing at raw offset %d", *f.Offset)
		}
	}
	if mounts, _ := os.ReadFile("/proc/self/mounts"); bytes.Contains(mounts, []byte("/imagetool-")) {
		t.Error("the mount is seen outside, or left behind")
	}
}

func TestAuditClean(t *testing.T) {
	needMounts(t)
	disk := makeDisk(t, map[string]string{"etc/machine-id": "", "etc/passwd": "root:x:0:0::/root:/bin/sh\n"})
	if found, _ := auditOf(t, exitOK, "--device", disk, "--allow-user", "admin"); found != nil {
		t.Errorf("found %v", found)
	}
}

func TestAuditRawOnly(t *testing.T) {
	disk := makeDisk(t, map[string]string{"root/deleted": secretstest.Ed25519Key(t)}, "root/deleted")
	if found, _ := auditOf(t, exitFindings, "--device", disk, "--raw-only"); !slices.Equal(found, []string{"private-key@raw"}) {
		t.Errorf("found %v", found)
	}
}

func TestAuditErrors(t *testing.T) {
	directory := t.TempDir()
	empty := filepath.Join(directory, "empty")
	os.WriteFile(empty, make([]byte, 1<<20), 0o600)
	torn := makeDisk(t, map[string]string{"a": "b"})
	image, _ := os.ReadFile(torn)
	image[1024+300] ^= 1 // in the partition entries
	os.WriteFile(torn, image, 0o600)
	for want, args := range map[string][]string{
		"--device is needed":          {},
		"no such file":                {"--device", filepath.Join(directory, "none")},
		"no GUID partition table":     {"--device", empty},
		"a wrong checksum":            {"--device", torn},
		"fewer than 16 bytes":         {"--device", empty, "--forbid", "short"},
		"flag provided but not defin": {"--device", empty, "--mount"},
	} {
		var stdout, stderr bytes.Buffer
		status := run(append([]string{"audit"}, args...), &stdout, &stderr)
		if status != exitError || !strings.Contains(stderr.String(), want) || stdout.Len() > 0 {
			t.Errorf("%s: exit status %d, %q", want, status, stderr.String())
		}
	}
}

func TestTooManyFindings(t *testing.T) {
	result := &report{}
	for i := range int64(60) {
		result.addHit(secrets.Hit{Rule: "private-key"}, "", i)
	}
	result.addHit(secrets.Hit{Rule: "private-key", Fingerprint: "p"}, "", 100)
	result.addHit(secrets.Hit{Rule: "private-key"}, "/a", 0)
	result.addHit(secrets.Hit{Rule: "private-key"}, "/a", 0) // read as a file and on the device
	result.settle(map[string]bool{"p": true})
	if len(result.Findings) != 51 || result.Dropped != 10 || result.PublicKeys != 1 {
		t.Errorf("%d findings, %d dropped, %d public", len(result.Findings), result.Dropped, result.PublicKeys)
	}
}

// TestVouched covers what databases say of a file: dpkg's with old and merged paths, and rpm's, where a
// digest may go over the end of a page.
func TestVouched(t *testing.T) {
	directory := t.TempDir()
	write := func(name, content string) {
		path := filepath.Join(directory, name)
		os.MkdirAll(filepath.Dir(path), 0o755)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"merged", "old", "changed", "rpm", "split", "none"} {
		write("usr/lib/"+name, name)
	}
	md5Of := func(text string) string { sum := md5.Sum([]byte(text)); return hex.EncodeToString(sum[:]) }
	sha256Of := func(text string) string { sum := sha256.Sum256([]byte(text)); return hex.EncodeToString(sum[:]) }
	write("var/lib/dpkg/info/a.md5sums", md5Of("merged")+"  usr/lib/merged\n"+md5Of("old")+"  lib/old\n"+md5Of("x")+"  usr/lib/changed\n")
	split := sha256Of("split")
	database := strings.Repeat(".", 100) + sha256Of("rpm") + "\x00"
	database += strings.Repeat(".", 4096-20-len(database)) + split[:20] + "LINK" + split[20:]
	write("var/lib/rpm/rpmdb.sqlite", database+strings.Repeat(".", 8192-len(database)))

	vendor, err := openVendorFiles(directory)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]bool{"merged": true, "old": true, "changed": false, "rpm": true, "split": true, "none": false} {
		if got, err := vendor.vouched("/usr/lib/" + name); err != nil || got != want {
			t.Errorf("%s: %v %v, want %v", name, got, err, want)
		}
	}
}
