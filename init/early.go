//lint:file-ignore U1000 early_amd64.s and early_arm64.s use these; staticcheck does not read assembly

package main

import (
	"os"
	"syscall"
	"time"

	"instantenv/init/internal/boot"
	"instantenv/init/internal/config"
	"instantenv/init/internal/supervisor"
)

// early is the program's entry point (toolchain.py passes it to the linker), before Go's runtime starts. As process 1 it
// executes sshd, and jumps to the runtime's own entry. sshd takes a while to load, link, and set up its cryptography. It
// needs nothing from this program until it reads its configuration, and a lease on sshd_config delays that until
// everything is in place. If a step fails, no sshd runs, and package boot starts it later.
//
// It is in assembly because the runtime itself takes a while to start: little on a fast disk and processor, but longer than
// all the rest when blocks of a new volume are read for the first time, or under emulation.
func early()

// earlyWords are the constants that early needs, as C strings: each ends with a zero byte.
var earlyWords = [...]string{
	"proc\x00", "/proc\x00", // sshd's libraries ask the kernel there whether it is in FIPS mode
	"devtmpfs\x00", "/dev\x00", "mode=755\x00", // as in mounts; the kernel may have done so itself
	boot.SSHDConfiguration + "\x00",
	os.DevNull + "\x00",
	config.DefaultSSHD + "\x00", "-D\x00", "-e\x00", "-o\x00", "PidFile=" + boot.GateFile + "\x00",
	supervisor.SearchPath + "\x00",
}

// Results and scratch space of early.
var (
	earlyPID       int64 // of sshd; 0: it was not started
	earlyLease     int64 // the descriptor that holds its configuration
	earlyOutput    [2]int32
	earlyAt        syscall.Timespec // on CLOCK_BOOTTIME
	earlyError     int64            // of the child, which shares our memory until it is sshd
	earlyArguments [6]uintptr
	earlyEnv       [2]uintptr
)

// earlyStart returns the sshd that early started, or nil.
func earlyStart() *boot.EarlyStart {
	if earlyPID == 0 {
		return nil
	}
	return &boot.EarlyStart{
		PID: int(earlyPID), Output: int(earlyOutput[0]), Lease: int(earlyLease), At: time.Duration(earlyAt.Nano()),
	}
}
