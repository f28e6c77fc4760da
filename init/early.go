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

// early is where the kernel enters this program (toolchain.py tells the linker), before Go's runtime is there. As process
// 1 it executes sshd, and goes on to the runtime's own entry. It takes sshd a while to be loaded and linked, and to set up
// its cryptography, and nothing that is done here has to be done by then: it reads its configuration after that, and
// sshd_config is under a lease (takeLease) until everything is in place. Where anything fails, no sshd runs, and startSSHD
// starts it later.
//
// It is in assembly because the runtime takes a while to start itself: little where the disk and the processor are quick,
// longer than all the rest where blocks of a new volume are read for the first time, or where a processor is emulated.
func early()

// earlyWords are what early needs of this program's constants, as C has them: each ends with a zero byte.
var earlyWords = [...]string{
	"proc\x00", "/proc\x00", // sshd's libraries ask the kernel there whether it is in FIPS mode
	"devtmpfs\x00", "/dev\x00", "mode=755\x00", // as in mounts; the kernel may have done so itself
	boot.SSHDConfiguration + "\x00",
	os.DevNull + "\x00",
	config.DefaultSSHD + "\x00", "-D\x00", "-e\x00", "-o\x00", "PidFile=" + boot.GateFile + "\x00",
	supervisor.SearchPath + "\x00",
}

// What early leaves.
var (
	earlyPID       int64 // of sshd; 0: it was not started
	earlyLease     int64 // the descriptor that holds its configuration
	earlyOutput    [2]int32
	earlyAt        syscall.Timespec // on CLOCK_BOOTTIME
	earlyError     int64            // of the child, which shares our memory until it is sshd
	earlyArguments [6]uintptr
	earlyEnv       [2]uintptr
)

// earlyStart returns what early has done; nil: nothing.
func earlyStart() *boot.EarlyStart {
	if earlyPID == 0 {
		return nil
	}
	return &boot.EarlyStart{
		PID: int(earlyPID), Output: int(earlyOutput[0]), Lease: int(earlyLease), At: time.Duration(earlyAt.Nano()),
	}
}
