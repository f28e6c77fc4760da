package main

import (
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// Time that a shutdown gives: to processes after SIGTERM, after SIGKILL, and to all of it.
const (
	termGrace     = 3 * time.Second
	killGrace     = time.Second
	shutdownLimit = 20 * time.Second
)

// Of linux/input-event-codes.h and struct input_event on 64-bit machines.
const (
	evKey          = 1
	keyPower       = 116
	inputEventSize = 24
)

// buttonDelay is how long the power button may wait for a boot that does not get to sshd.
const buttonDelay = 5 * time.Second

// watchPowerButton turns a press of the ACPI power button, which is how EC2 stops an instance, into a shutdown.
// It lets the way to sshd go first: the modules cost time on a processor that the boot needs.
func (m *machine) watchPowerButton() error {
	select {
	case <-m.serving:
	case <-time.After(buttonDelay):
	}
	if tree, err := m.modules(); err == nil {
		for _, name := range []string{"evdev", "button"} {
			if err := tree.Load(name); err != nil && !errors.Is(err, os.ErrNotExist) {
				m.log.sayf("power button: %v", err)
			}
		}
	}
	devices, err := filepath.Glob("/dev/input/event*")
	if err != nil || len(devices) == 0 {
		m.log.sayf("no power button: stopping the machine will take as long as its host waits")
		return err
	}
	for _, device := range devices {
		// Non-blocking, so that the Go runtime polls it and no thread waits in read.
		file, err := os.OpenFile(device, os.O_RDONLY|syscall.O_NONBLOCK, 0)
		if err != nil {
			return err
		}
		m.spawn("events of "+device, func() error {
			defer file.Close()
			buffer := make([]byte, 64*inputEventSize)
			for {
				length, err := file.Read(buffer)
				if err != nil {
					m.log.notef("power button: %v", err) // a keyboard was taken away
					return nil
				}
				if powerPressed(buffer[:length]) {
					m.powerOff("the power button was pressed")
				}
			}
		})
	}
	return nil
}

// powerPressed looks for KEY_POWER going down in a row of struct input_event.
func powerPressed(events []byte) bool {
	for ; len(events) >= inputEventSize; events = events[inputEventSize:] {
		kind := binary.NativeEndian.Uint16(events[16:])
		code := binary.NativeEndian.Uint16(events[18:])
		value := binary.NativeEndian.Uint32(events[20:])
		if kind == evKey && code == keyPower && value == 1 {
			return true
		}
	}
	return false
}

// shutDown ends all processes, writes everything to the disk and powers off or restarts. It does not return, and it
// takes a bounded time.
func (m *machine) shutDown(how ending) {
	what, finish := "powering off", powerOffNow
	if how.restart {
		what, finish = "restarting", restartNow
	}
	go func() {
		time.Sleep(shutdownLimit)
		finish()
	}()
	defer finish() // also after a panic
	m.log.sayf("%s: %s", what, how.reason)
	m.processes.close()
	// Interactive shells ignore SIGTERM, but not a hangup.
	m.end(termGrace, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGCONT)
	m.end(killGrace, syscall.SIGKILL)
	syscall.Sync()
	unmountAll(m.log)
	syscall.Sync()
}

// end signals every process but this one and waits until all are gone, at most for the given time.
func (m *machine) end(grace time.Duration, signals ...syscall.Signal) {
	for _, s := range signals {
		_ = syscall.Kill(-1, s) // ESRCH when nobody is left
	}
	for until := time.Now().Add(grace); m.processes.reap() && time.Now().Before(until); {
		time.Sleep(5 * time.Millisecond)
	}
}

// unmountAll takes file systems on disks away, the latest first, and leaves the root read-only.
func unmountAll(log *logger) {
	text, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		log.sayf("unmount: %v", err)
	}
	targets := diskMounts(string(text))
	for i := len(targets) - 1; i >= 0; i-- {
		if err := syscall.Unmount(targets[i], 0); err != nil {
			log.sayf("unmount %s: %v", targets[i], err)
		}
	}
	if err := syscall.Mount("", "/", "", syscall.MS_REMOUNT|syscall.MS_RDONLY, ""); err != nil {
		log.sayf("remount / read-only: %v", err)
	}
}

// diskMounts picks from /proc/mounts the mount points, other than the root, of file systems with a device.
func diskMounts(table string) []string {
	unescape := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	var targets []string
	for line := range strings.Lines(table) {
		fields := strings.Fields(line)
		if len(fields) > 1 && strings.HasPrefix(fields[0], "/dev/") && fields[1] != "/" {
			targets = append(targets, unescape.Replace(fields[1]))
		}
	}
	return targets
}

// restartNow falls back on powering off: a machine that is down can be started, one that hangs cannot.
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
