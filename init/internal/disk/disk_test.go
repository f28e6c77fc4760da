package disk

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"
)

const mib = 1 << 20

func device(t *testing.T, size int64, at int64, content string) *os.File {
	t.Helper()
	file, err := os.Create(filepath.Join(t.TempDir(), "device"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	if err := file.Truncate(size); err != nil {
		t.Fatal(err)
	}
	if _, err := file.WriteAt([]byte(content), at); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestBlank(t *testing.T) {
	const size = 1 << 40 // sparse
	for _, test := range []struct {
		name string
		size int64
		at   int64
		want bool
	}{
		{"nothing", size, 0, true},
		{"a small one", 2 * mib, 0, true},
		{"XFS, LUKS, LVM, a partition table", size, 0, false},
		{"ext4's superblock", size, 1080, false},
		{"btrfs's superblock", size, 64<<10 + 64, false},
		{"the last byte of the first MiB", size, mib - 1, false},
		{"a label of ZFS or MD, the backup GPT", size, size - 512, false},
		{"the first byte of the last MiB", size, size - mib, false},
		{"btrfs's second superblock", size, 64<<20 + 64, false},
		{"ext4's second superblock", size, 128<<20 + 56, false},
		{"XFS's second superblock", size, size / 4, false},
		{"btrfs's third superblock", size, 256<<30 + 64, false},
		{"a small one with something at its end", 2*mib + 512, 2*mib + 511, false},
	} {
		content := "x"
		if test.want {
			content = "\x00"
		}
		got, blank, err := Blank(device(t, test.size, test.at, content))
		if got != test.size || blank != test.want || err != nil {
			t.Errorf("%s: %d, %v, %v", test.name, got, blank, err)
		}
	}
	if _, blank, err := Blank(device(t, 1000, 0, "\x00")); blank || err == nil {
		t.Error("too small to tell counts as blank")
	}
}

func TestFileSystem(t *testing.T) {
	for _, test := range []struct {
		at            int64
		content, want string
	}{
		{0, "XFSB", "xfs"}, {1080, "\x53\xEF", "ext4"}, {0, "", ""}, {65536 + 64, "_BHRfS_M", ""}, {1080, "\x53", ""},
	} {
		got, err := FileSystem(device(t, 4*mib, test.at, test.content))
		if got != test.want || err != nil {
			t.Errorf("%q at %d: %q, %v", test.content, test.at, got, err)
		}
	}
}

func TestFind(t *testing.T) {
	sys, dev := t.TempDir(), t.TempDir()
	for disk, serial := range map[string]string{"nvme0n1": "vol0aaa", "nvme1n1": "vol0bbb", "nvme2n1": "AWS1234"} {
		directory := filepath.Join(sys, "block", disk, "device")
		if err := os.MkdirAll(directory, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(directory, "serial"), []byte(serial+"             \n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	path := filepath.Join(dev, "nvme1n1")
	if err := os.WriteFile(path, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"vol-0bbb": path, "vol-0bb": "", "vol-0ccc": "", path: path, "/dev/sdzz": ""} {
		got, err := Find(sys, dev, name)
		if got != want || (want == "") != errors.Is(err, ErrNotFound) {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}

func TestIdentity(t *testing.T) {
	identity := func(model, name string) []byte {
		data := make([]byte, identifyLength)
		copy(data[modelStart:], model+string(bytes.Repeat([]byte{' '}, modelLength-len(model))))
		copy(data[vendorSpecific:], name)
		return data
	}
	// Both forms are seen on EC2, padded with blanks or zeros.
	for _, name := range []string{"/dev/sdf", "sdf", "xvdf", "/dev/xvdf", "sdf                             ", "sdf\x00\x00"} {
		got, err := parseIdentity(identity(ebsModel, name))
		if err != nil || !sameName(got, "/dev/sdf") || !sameName(got, "/dev/xvdf") || sameName(got, "/dev/sdg") {
			t.Errorf("%q: %q, %v", name, got, err)
		}
	}
	if _, err := parseIdentity(identity("Amazon EC2 NVMe Instance Storage", "sdf")); err == nil {
		t.Error("an instance store has a name")
	}
	if _, err := parseIdentity(make([]byte, 100)); err == nil {
		t.Error("a short answer")
	}
	if sameName("", "") || sameName("sda", "sdaa") {
		t.Error("names that are not the same")
	}
}

func TestGrowOfWhatHasNoDevice(t *testing.T) {
	if _, err := Grow("/proc", nil); err == nil {
		t.Error("/proc grew")
	}
	if _, err := Grow("/does/not/exist", nil); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}
