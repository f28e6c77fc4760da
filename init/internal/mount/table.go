// Package mount has the table of the kernel's own file systems, and mounts them.
package mount

import (
	"errors"
	"fmt"
	"os"
	"syscall"
)

const (
	nosuid = syscall.MS_NOSUID
	nodev  = syscall.MS_NODEV
	noexec = syscall.MS_NOEXEC
)

// An Entry is one line of the table. An optional one may fail, because a login works without it.
type Entry struct {
	Target, Kind, Options string

	flags    uintptr
	optional bool
}

// Table in the order of mounting. gid 5 is `tty` on Debian and on Amazon Linux alike.
var Table = []Entry{
	{Target: "/proc", Kind: "proc", flags: nosuid | nodev | noexec},
	{Target: "/sys", Kind: "sysfs", flags: nosuid | nodev | noexec},
	{Target: "/dev", Kind: "devtmpfs", Options: "mode=755", flags: nosuid},
	{Target: "/dev/pts", Kind: "devpts", Options: "gid=5,mode=620,ptmxmode=666", flags: nosuid | noexec},
	{Target: "/dev/shm", Kind: "tmpfs", Options: "mode=1777", flags: nosuid | nodev},
	{Target: "/run", Kind: "tmpfs", Options: "mode=755", flags: nosuid | nodev},
	{Target: "/tmp", Kind: "tmpfs", Options: "mode=1777", flags: nosuid | nodev},
	{Target: "/sys/fs/cgroup", Kind: "cgroup2", Options: "nsdelegate", flags: nosuid | nodev | noexec, optional: true},
}

// All mounts the table, and stops at the first failure of an entry that is not optional.
func All(table []Entry) error {
	for _, entry := range table {
		if err := entry.mount(); err != nil && !entry.optional {
			return err
		}
	}
	return nil
}

func (e Entry) mount() error {
	if err := os.MkdirAll(e.Target, 0o755); err != nil {
		return fmt.Errorf("mount point: %w", err)
	}
	// EBUSY: the kernel mounted it before us (devtmpfs, with CONFIG_DEVTMPFS_MOUNT).
	err := syscall.Mount(e.Kind, e.Target, e.Kind, e.flags, e.Options)
	if err != nil && !errors.Is(err, syscall.EBUSY) {
		return fmt.Errorf("mount %s: %w", e.Target, err)
	}
	return nil
}

// RemountWritable remounts a read-only file system for writing.
func RemountWritable(target string) error {
	var status syscall.Statfs_t
	if err := syscall.Statfs(target, &status); err != nil {
		return fmt.Errorf("statfs %s: %w", target, err)
	}
	if status.Flags&syscall.MS_RDONLY == 0 {
		return nil
	}
	if err := syscall.Mount("", target, "", syscall.MS_REMOUNT, ""); err != nil {
		return fmt.Errorf("remount %s writable: %w", target, err)
	}
	return nil
}
