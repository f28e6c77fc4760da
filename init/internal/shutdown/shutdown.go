// Package shutdown takes the machine down in order, in a bounded time.
package shutdown

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"instantenv/init/internal/logging"
	"instantenv/init/internal/netif"
	"instantenv/init/internal/swap"
	"instantenv/init/internal/sysfs"
)

// Time that a shutdown gives to each of its parts, and to all of it. The parts sum up to less than the whole, which
// counts: at its end the power goes off, whatever hangs. With nothing stuck all of it takes tenths of a second.
const (
	servicesLimit = 4 * time.Second // to all services
	termGrace     = time.Second     // to all other processes after SIGTERM and SIGHUP
	killGrace     = 500 * time.Millisecond
	syncLimit     = 2 * time.Second
	swapLimit     = 500 * time.Millisecond
	unmountLimit  = 300 * time.Millisecond // to each file system, at least
	unmountsLimit = time.Second            // to all of them, at least
	nicsLimit     = 100 * time.Millisecond
	shutdownLimit = 9500 * time.Millisecond
)

// An Ending is how the machine goes down: for good, or to start again.
type Ending struct {
	Reason  string
	Restart bool
}

// Processes are those that this process has started or inherited.
type Processes interface {
	Close()            // starts no more
	Reap() (left bool) // collects what has ended
}

// A Shutdown is what it needs of the machine.
type Shutdown struct {
	Log          *logging.Logger
	Processes    Processes
	StopServices func(deadline time.Time)
}

// Run ends all processes, writes everything to the disk and powers off or restarts. It does not return, and it takes
// a bounded time.
func (s *Shutdown) Run(how Ending) {
	what, finish := "powering off", powerOffNow
	if how.Restart {
		what, finish = "restarting", restartNow
	}
	begin := time.Now()
	go func() {
		time.Sleep(shutdownLimit)
		finish()
	}()
	defer finish() // also after a panic
	s.Log.Consolef("%s: %s", what, how.Reason)
	s.Processes.Close()
	s.StopServices(begin.Add(servicesLimit))
	// Interactive shells ignore SIGTERM, but not a hangup.
	s.end(termGrace, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGCONT)
	if s.end(killGrace, syscall.SIGKILL) {
		s.Log.Consolef("processes are stuck: %s", stuckProcesses())
	}
	// What the parts before it did not take is the disks' as well: one that is slow does not hang.
	writing := max(syncLimit, shutdownLimit-time.Since(begin)-swapLimit-unmountsLimit-unmountLimit-2*nicsLimit)
	if !withTimeout(writing, syscall.Sync) {
		s.Log.Consolef("not everything could be written to the disks within %s", writing.Round(time.Millisecond))
	}
	if !withTimeout(swapLimit, swapOff) {
		s.Log.Consolef("swap: what is in it could not be read back within %s", swapLimit)
	}
	s.unmountAll(begin.Add(shutdownLimit - unmountLimit - 2*nicsLimit))
	if !withTimeout(nicsLimit, s.nicsDown) {
		s.Log.Consolef("network interfaces are not down within %s", nicsLimit)
	}
	s.Log.Consolef("%s now, after %s", what, time.Since(begin).Round(time.Millisecond))
}

// end signals every process but this one and waits until all are gone, at most for the given time. It tells whether
// any is left.
func (s *Shutdown) end(grace time.Duration, signals ...syscall.Signal) (left bool) {
	for _, signal := range signals {
		_ = syscall.Kill(-1, signal) // ESRCH when nobody is left
	}
	until := time.Now().Add(grace)
	for s.Processes.Reap() {
		if time.Now().After(until) {
			return true
		}
		time.Sleep(5 * time.Millisecond)
	}
	return false
}

// withTimeout runs work that may hang in the kernel, and reports whether it returned in time. If not, its thread is left.
func withTimeout(limit time.Duration, work func()) bool {
	done := make(chan struct{})
	go func() {
		defer close(done)
		work()
	}()
	select {
	case <-done:
		return true
	case <-time.After(max(limit, 0)):
		return false
	}
}

// stuckProcesses lists the processes that SIGKILL did not end: they wait in the kernel, mostly for a disk.
func stuckProcesses() string {
	// Not os.ReadDir: its sorting makes the binary larger by 12 kB.
	files, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return err.Error()
	}
	var found []string
	for _, file := range files {
		line, err := sysfs.ReadLine(file)
		if err != nil || file == "/proc/1/stat" {
			continue
		}
		name, rest, _ := strings.Cut(line, ") ")
		fields := strings.Fields(rest)
		// Of proc_pid_stat(5): state, ppid, ...; kernel threads are children of process 2.
		if len(fields) > 1 && fields[1] != "0" && fields[1] != "2" && fields[0] != "Z" {
			found = append(found, fmt.Sprintf("%s) %s", name, fields[0]))
		}
	}
	return strings.Join(found[:min(len(found), 10)], ", ")
}

// swapOff switches all swap off: a swap file keeps its file system from being unmounted.
func swapOff() {
	text, err := os.ReadFile("/proc/swaps")
	if err != nil {
		return // a kernel without swap
	}
	for _, line := range strings.Split(string(text), "\n")[1:] {
		if fields := strings.Fields(line); len(fields) > 0 {
			_ = swap.Off(fields[0]) // what hinders an unmount is told there
		}
	}
}

// unmountAll unmounts all but the kernel's own file systems, the latest first, and makes the root read-only. A file system
// that cannot be unmounted is made read-only, too.
func (s *Shutdown) unmountAll(deadline time.Time) {
	text, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		s.Log.Consolef("unmount: %v", err)
	}
	targets := foreignMounts(string(text))
	bounded := func(target string, work func() error) {
		var err error
		// The root is left for last, and has its own time.
		limit := unmountLimit
		if target != "/" {
			limit = share(time.Until(deadline))
		}
		if !withTimeout(limit, func() { err = work() }) {
			s.Log.Consolef("unmount %s: hangs", target)
		} else if err != nil {
			s.Log.Consolef("unmount %s: %v", target, err)
		}
	}
	for i := len(targets) - 1; i >= 0; i-- {
		target := targets[i]
		bounded(target, func() error {
			err := syscall.Unmount(target, 0)
			if err != nil && readOnly(target) != nil {
				return err
			}
			return nil
		})
	}
	bounded("/", func() error { return readOnly("/") })
}

// share is what one file system gets of the time that is left for all: half of it, so that one that hangs leaves some for
// the next, and one that is only slow is not taken for one that hangs.
func share(left time.Duration) time.Duration {
	return min(max(unmountLimit, left/2), max(left, 0))
}

func readOnly(target string) error {
	return syscall.Mount("", target, "", syscall.MS_REMOUNT|syscall.MS_RDONLY, "")
}

// nicsDown prevents a hang of Debian's kernel 6.1.192: it breaks virtio devices before it powers off, and virtio_net then
// tries for ever to reap the packets that it has just sent, with the power on.
func (s *Shutdown) nicsDown() {
	nics, err := netif.List(netif.HasDevice)
	if err != nil {
		s.Log.Consolef("%v", err)
	}
	for _, nic := range nics {
		if err := netif.Down(nic.Index); err != nil {
			s.Log.Consolef("%s: %v", nic.Name, err)
		}
	}
}

// foreignMounts picks from /proc/mounts the mount points, other than the root, of file systems that hold data: those
// with a device, and what lies over them (overlay).
func foreignMounts(table string) []string {
	var targets []string
	for line := range strings.Lines(table) {
		fields := strings.Fields(line)
		if len(fields) < 3 || fields[1] == "/" {
			continue
		}
		if strings.HasPrefix(fields[0], "/dev/") || fields[2] == "overlay" {
			targets = append(targets, unescapeMount(fields[1]))
		}
	}
	return targets
}

// unescapeMount undoes what the kernel does to blanks and backslashes: three octal digits after a backslash (mangle_path in
// fs/seq_file.c). It does so to every backslash, so none stands for itself.
func unescapeMount(path string) string {
	var out []byte
	for {
		plain, escaped, found := strings.Cut(path, `\`)
		out = append(out, plain...)
		if !found {
			return string(out)
		}
		if len(escaped) < 3 {
			return string(append(out, escaped...)) // not of the kernel
		}
		code, _ := strconv.ParseUint(escaped[:3], 8, 8)
		out, path = append(out, byte(code)), escaped[3:]
	}
}

// restartNow powers off if the restart fails: a stopped machine can be started again, a hanging one cannot.
func restartNow() {
	_ = syscall.Reboot(syscall.LINUX_REBOOT_CMD_RESTART)
	powerOffNow()
}

func powerOffNow() {
	_ = syscall.Reboot(syscall.LINUX_REBOOT_CMD_POWER_OFF)
	// Without a way to cut the power, a halted machine is the next best; process 1 must not end.
	_ = syscall.Reboot(syscall.LINUX_REBOOT_CMD_HALT)
	select {}
}
