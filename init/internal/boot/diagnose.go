package boot

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"instantenv/init/internal/sysfs"
	"instantenv/init/kmsg"
)

// diagnose describes the machine's condition in a few lines, for the console: memory, root file system, network
// interfaces, the kernel's latest warnings. root is the directory that contains proc and sys.
func diagnose(root string) (lines []string) {
	if text, err := os.ReadFile(filepath.Join(root, "proc/meminfo")); err == nil {
		var memory []string
		for line := range strings.Lines(string(text)) {
			if strings.HasPrefix(line, "MemTotal:") || strings.HasPrefix(line, "MemAvailable:") {
				memory = append(memory, strings.Join(strings.Fields(line), " "))
			}
		}
		lines = append(lines, "memory: "+strings.Join(memory, ", "))
	}
	var status syscall.Statfs_t
	if err := syscall.Statfs(root, &status); err == nil {
		mode := "writable"
		if status.Flags&syscall.MS_RDONLY != 0 {
			mode = "read-only"
		}
		free := status.Bavail * uint64(status.Bsize) >> 20
		lines = append(lines, fmt.Sprintf("root: %s, %d MiB and %d inodes free", mode, free, status.Ffree))
	}
	nics, _ := filepath.Glob(filepath.Join(root, "sys/class/net/*")) // the only error is a bad pattern
	for _, nic := range nics {
		state, _ := sysfs.ReadLine(nic + "/operstate")
		address, _ := sysfs.ReadLine(nic + "/address")
		received, _ := sysfs.ReadLine(nic + "/statistics/rx_packets")
		sent, _ := sysfs.ReadLine(nic + "/statistics/tx_packets")
		lines = append(lines, fmt.Sprintf("network: %s %s %s, %s packets received, %s sent",
			filepath.Base(nic), state, address, received, sent))
	}
	for _, complaint := range kernelComplaints(filepath.Join(root, "dev/kmsg"), 5) {
		lines = append(lines, "kernel: "+complaint)
	}
	return lines
}

// kernelComplaints returns the last of the kernel's own messages at level warning or worse.
func kernelComplaints(path string, most int) (found []string) {
	file, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil
	}
	defer file.Close()
	fd := int(file.Fd()) // blocking again, which the loop undoes: the runtime would wait for more at the end
	if err := syscall.SetNonblock(fd, true); err != nil {
		return nil
	}
	_ = kmsg.Each(func(buffer []byte) (int, error) { return syscall.Read(fd, buffer) }, func(record kmsg.Record) (more bool) {
		if record.Priority <= 4 { // facility 0 is the kernel, 4 is warning
			found = append(found, strings.ReplaceAll(record.Text, `\x0a`, " ")) // the kernel's own escape of a newline
		}
		return true
	}) // to the log's end
	return found[max(0, len(found)-most):]
}
