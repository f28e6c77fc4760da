package main

import (
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"instantenv/init/internal/boottime"
	"instantenv/init/internal/dhcp"
)

func TestTimeline(t *testing.T) {
	now := 800 * time.Millisecond
	marks := newTimeline(func() time.Duration { now += 1500 * time.Microsecond; return now }, true)
	first := marks.mark("init_start")
	mounted := marks.stage("mounts")
	marks.stage("network")
	mounted()
	again := marks.mark("init_start")
	marks.markReads("init_start", diskReads{requests: 3, bytes: 12288})
	want := `{"version":2,"clock":"CLOCK_BOOTTIME","pid1":true,"marks":[{"name":"init_start","boottime_ms":801.5}],` +
		`"stages":[{"name":"mounts","start_ms":803,"end_ms":806},{"name":"network","start_ms":804.5,"end_ms":null}],` +
		`"root_reads":[{"mark":"init_start","requests":3,"bytes":12288}]}`
	if !json.Valid(newTimeline(boottime.Now, false).json()) {
		t.Error("an empty one is not JSON")
	}
	if got := string(marks.json()); got != want || !first || again {
		t.Errorf("%v, %v\ngot  %s\nwant %s", first, again, got, want)
	}
}

func TestTimelineOfWaking(t *testing.T) {
	now := time.Duration(0)
	marks := newTimeline(func() time.Duration { now += time.Millisecond; return now }, true)
	for _, name := range []string{"init_start", keyWrittenMark, "first_login"} {
		marks.mark(name)
	}
	for range 2 {
		marks.wake()
		if !marks.mark(keyWrittenMark) {
			t.Error("the key that came after the sleep is not recorded")
		}
	}
	if marks.mark("init_start") || marks.mark("first_login") {
		t.Error("what happens once is recorded twice")
	}
	want := `"marks":[{"name":"init_start","boottime_ms":1},{"name":"first_login","boottime_ms":3},` +
		`{"name":"resumed","boottime_ms":6},{"name":"key_written","boottime_ms":7}]`
	if got := string(marks.json()); !strings.Contains(got, want) {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestMountTableIsInOrder(t *testing.T) {
	seen := map[string]bool{}
	for _, entry := range mounts {
		if parent := filepath.Dir(entry.target); parent != "/" && parent != "/sys/fs" && !seen[parent] {
			t.Errorf("%s comes before %s", entry.target, parent)
		}
		seen[entry.target] = true
	}
}

func TestParseDiskStat(t *testing.T) {
	line := "     435      599    42294     1025       73       96     1344      393        0      992     1497"
	if got, err := parseDiskStat(line); got != (diskReads{requests: 435, bytes: 42294 * 512}) || err != nil {
		t.Errorf("%+v, %v", got, err)
	}
	for _, line := range []string{"", "1 2", "x 2 3", "1 2 x"} {
		if got, err := parseDiskStat(line); err == nil {
			t.Errorf("%q: got %+v", line, got)
		}
	}
}

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
	write(t, path, "127.0.0.1 localhost\n10.0.0.9 db # mine")
	for _, name := range []string{"ip-10-0-0-5", "ip-10-0-0-6"} {
		if err := writeHosts(path, name, "ec2.internal"); err != nil {
			t.Fatal(err)
		}
	}
	want := "127.0.0.1 localhost\n10.0.0.9 db # mine\n127.0.1.1 ip-10-0-0-6.ec2.internal ip-10-0-0-6 # instant-init\n"
	if got := read(t, path); got != want {
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
		if got := read(t, path); got != want {
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
	write(t, filepath.Join(directory, "0000:00:03.0", "modalias"), nic+"\n")
	write(t, filepath.Join(directory, "0000:00:04.0", "modalias"), "pci:v00001D0Fd00008061sv0sd0bc01sc08i02\n")
	write(t, filepath.Join(directory, "0000:00:05.0", "modalias"), nic+"\n")
	write(t, filepath.Join(directory, "0000:00:05.0", "driver"), "")
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

func TestNotifyReady(t *testing.T) {
	if err := notifyReady(""); err != nil {
		t.Errorf("without systemd: %v", err)
	}
	if err := notifyReady("vsock:2:1"); err == nil {
		t.Error("an address of an unknown kind was accepted")
	}
	for _, name := range []string{filepath.Join(t.TempDir(), "notify"), "@instant-init-test"} {
		socket, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
		if err != nil {
			t.Fatal(err)
		}
		if err := notifyReady(name); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		buffer := make([]byte, 100)
		if err := socket.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if length, err := socket.Read(buffer); err != nil || string(buffer[:length]) != "READY=1" {
			t.Errorf("%s: got %q, %v", name, buffer[:length], err)
		}
		socket.Close()
	}
}
