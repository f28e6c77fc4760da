package network

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"instantenv/init/internal/dhcp"
	"instantenv/init/internal/inittest"
)

func TestHostName(t *testing.T) {
	for name, want := range map[string]string{"": "ip-172-31-5-10", "web": "web", "web.ec2.internal": "web"} {
		if got := hostName(dhcp.Lease{IP: [4]byte{172, 31, 5, 10}, Hostname: name}); got != want {
			t.Errorf("%q: got %q, want %q", name, got, want)
		}
	}
}

func TestWriteHosts(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("/etc/hosts belongs to root")
	}
	path := filepath.Join(t.TempDir(), "hosts")
	inittest.Write(t, path, "127.0.0.1 localhost\n10.0.0.9 db # mine")
	for _, name := range []string{"ip-10-0-0-5", "ip-10-0-0-6"} {
		if err := writeHosts(path, name, "ec2.internal"); err != nil {
			t.Fatal(err)
		}
	}
	want := "127.0.0.1 localhost\n10.0.0.9 db # mine\n127.0.1.1 ip-10-0-0-6.ec2.internal ip-10-0-0-6 # instant-init\n"
	if got := inittest.Read(t, path); got != want {
		t.Fatalf("got %q, want %q", got, want)
	}
}

func TestWriteResolvConf(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("/etc/resolv.conf belongs to root")
	}
	lease := dhcp.Lease{Domain: "ec2.internal", DNS: [][4]byte{{172, 31, 0, 2}, {1, 1, 1, 1}}}
	want := "# written by instant-init\nsearch ec2.internal\nnameserver 172.31.0.2\nnameserver 1.1.1.1\n"
	directory := t.TempDir()
	for _, name := range []string{"plain", "link"} {
		path := filepath.Join(directory, name)
		if name == "link" { // not into /run: it is replaced
			if err := os.Symlink(filepath.Join(directory, "elsewhere"), path); err != nil {
				t.Fatal(err)
			}
		}
		if err := writeResolvConf(path, lease); err != nil {
			t.Fatal(err)
		}
		if got := inittest.Read(t, path); got != want {
			t.Errorf("%s: got %q", name, got)
		}
	}
	if _, err := os.Lstat(filepath.Join(directory, "elsewhere")); err == nil {
		t.Error("wrote through a link that does not lead into /run")
	}
}

func TestWithoutDriver(t *testing.T) {
	directory := t.TempDir()
	nic := "pci:v00001D0Fd0000EC20sv0sd0bc02sc00i00"
	inittest.Write(t, filepath.Join(directory, "0000:00:03.0", "modalias"), nic+"\n")
	inittest.Write(t, filepath.Join(directory, "0000:00:04.0", "modalias"), "pci:v00001D0Fd00008061sv0sd0bc01sc08i02\n")
	inittest.Write(t, filepath.Join(directory, "0000:00:05.0", "modalias"), nic+"\n")
	inittest.Write(t, filepath.Join(directory, "0000:00:05.0", "driver"), "")
	if got := withoutDriver(directory, "bc02"); len(got) != 1 || got[0] != nic {
		t.Fatalf("got %q", got)
	}
}

func TestIsNetworkDevice(t *testing.T) {
	event := func(words ...string) []byte { return []byte(strings.Join(words, "\x00") + "\x00") }
	nic := "MODALIAS=pci:v00001D0Fd0000EC20sv0sd0bc02sc00i00"
	for _, test := range []struct {
		name  string
		event []byte
		want  bool
	}{
		{"ENA", event("add@/devices/pci0000:00/0000:00:06.0", "ACTION=add", "SUBSYSTEM=pci", nic), true},
		{"virtio", event("add@/devices/pci0000:00/0000:00:06.0/virtio3", "MODALIAS=virtio:d00000001v00001AF4"), true},
		{"removed", event("remove@/devices/pci0000:00/0000:00:06.0", nic), false},
		{"driven", event("bind@/devices/pci0000:00/0000:00:06.0", nic), false},
		{"a disk", event("add@/devices/pci0000:00/0000:00:07.0", "MODALIAS=pci:v00001D0Fd00008061sv0sd0bc01sc08i02"), false},
		{"nothing", nil, false},
	} {
		if got := isNetworkDevice(test.event); got != test.want {
			t.Errorf("%s: %v", test.name, got)
		}
	}
}
