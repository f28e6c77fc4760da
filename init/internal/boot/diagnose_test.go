package boot

import (
	"path/filepath"
	"strings"
	"testing"

	"instantenv/init/internal/inittest"
)

func TestDiagnose(t *testing.T) {
	root := t.TempDir()
	inittest.Write(t, filepath.Join(root, "proc/meminfo"), "MemTotal:  991 kB\nMemFree: 3 kB\nMemAvailable:  87 kB\n")
	inittest.Write(t, filepath.Join(root, "sys/class/net/eth0/operstate"), "down\n")
	inittest.Write(t, filepath.Join(root, "sys/class/net/eth0/address"), "02:00:00:00:00:01\n")
	inittest.Write(t, filepath.Join(root, "sys/class/net/eth0/statistics/rx_packets"), "0\n")
	inittest.Write(t, filepath.Join(root, "sys/class/net/eth0/statistics/tx_packets"), "7\n")
	text := strings.Join(diagnose(root), "\n")
	for _, want := range []string{
		"memory: MemTotal: 991 kB, MemAvailable: 87 kB", "root: writable, ",
		"network: eth0 down 02:00:00:00:00:01, 0 packets received, 7 sent",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	diagnose("/") // on whatever this is
}
