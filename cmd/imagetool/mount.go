package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"
)

// mountOptions keep the audit from writing (no journal replay) and let XFS be mounted beside a file
// system of the same UUID: the machine that audits often boots from a sibling of the image.
var mountOptions = map[string]string{"ext4": "noload", "xfs": "nouuid,norecovery"}

// The kernel reads the partition table of a freshly attached volume a moment after it appears.
const partitionTimeout = 5 * time.Second

// withMounted mounts the root file system read-only where only the calling thread sees it, and calls
// f with the directory. The thread is not given back to the Go runtime: it ends with the goroutine,
// and its mount namespace with it. So it has to be called on a goroutine of its own.
func withMounted(device *os.File, root rootPartition, f func(directory string) error) (err error) {
	runtime.LockOSThread()
	source, release, err := blockDevice(device, root)
	if err != nil {
		return err
	}
	defer release()
	directory, err := os.MkdirTemp("", "imagetool-")
	if err != nil {
		return err
	}
	defer os.Remove(directory)
	if err := syscall.Unshare(syscall.CLONE_NEWNS); err != nil {
		return fmt.Errorf("private mount namespace: %w (root is needed)", err)
	}
	if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("private mount namespace: %w", err)
	}
	const flags = syscall.MS_RDONLY | syscall.MS_NODEV | syscall.MS_NOSUID | syscall.MS_NOEXEC
	if err := syscall.Mount(source, directory, root.filesystem, flags, mountOptions[root.filesystem]); err != nil {
		return fmt.Errorf("mounting %s as %s: %w", source, root.filesystem, err)
	}
	defer func() { err = errors.Join(err, syscall.Unmount(directory, 0)) }()
	return f(directory)
}

// blockDevice names the block device to mount: the partition's own node, or a loop device for an
// image in a regular file.
func blockDevice(device *os.File, root rootPartition) (path string, release func(), err error) {
	info, err := device.Stat()
	if err != nil {
		return "", nil, err
	}
	if info.Mode().IsRegular() {
		return attachLoop(device, root)
	}
	if info.Mode().Type() != fs.ModeDevice {
		return "", nil, fmt.Errorf("%s is neither a block device nor a regular file", device.Name())
	}
	if root.offset == 0 {
		return device.Name(), func() {}, nil
	}
	number := info.Sys().(*syscall.Stat_t).Rdev
	directory := fmt.Sprintf("/sys/dev/block/%d:%d", major(number), minor(number))
	path, err = partitionNode(directory, root.offset)
	return path, func() {}, err
}

func major(device uint64) uint64 { return (device>>8)&0xfff | (device>>32)&^0xfff }
func minor(device uint64) uint64 { return device&0xff | (device>>12)&^0xff }

// partitionNode finds the partition by its start, in 512-byte sectors whatever the block size is.
func partitionNode(directory string, offset int64) (string, error) {
	want := strconv.FormatInt(offset/512, 10)
	for deadline := time.Now().Add(partitionTimeout); ; time.Sleep(20 * time.Millisecond) {
		starts, _ := filepath.Glob(filepath.Join(directory, "*", "start"))
		for _, start := range starts {
			content, err := os.ReadFile(start)
			if err != nil || strings.TrimSpace(string(content)) != want {
				continue
			}
			node := filepath.Join("/dev", filepath.Base(filepath.Dir(start)))
			if _, err := os.Stat(node); err == nil {
				return node, nil
			}
		}
		if time.Now().After(deadline) {
			return "", fmt.Errorf("the kernel shows no partition at byte %d after %s", offset, partitionTimeout)
		}
	}
}

// Numbers and layouts of linux/loop.h.
const (
	loopControlGetFree = 0x4c82
	loopConfigure      = 0x4c0a // Linux 5.8
	loopClear          = 0x4c01
	loopReadOnly       = 1
	loopAutoClear      = 4
)

type loopInfo64 struct {
	device, inode, rdevice, offset, sizeLimit  uint64
	number, encryptType, encryptKeySize, flags uint32
	fileName, cryptName                        [64]byte
	encryptKey                                 [32]byte
	init                                       [2]uint64
}

type loopConfig struct {
	fd, blockSize uint32
	info          loopInfo64
	reserved      [8]uint64
}

func ioctl(file *os.File, request, argument uintptr) (uintptr, error) {
	value, _, errno := syscall.Syscall(syscall.SYS_IOCTL, file.Fd(), request, argument)
	if errno != 0 {
		return 0, errno
	}
	return value, nil
}

// attachLoop shows the partition as a read-only loop device. Another process may take the free device
// first (EBUSY): then the next one is tried.
func attachLoop(image *os.File, root rootPartition) (path string, release func(), err error) {
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return "", nil, fmt.Errorf("loop devices: %w (--raw-only needs none)", err)
	}
	defer control.Close()
	for range 16 {
		number, err := ioctl(control, loopControlGetFree, 0)
		if err != nil {
			return "", nil, fmt.Errorf("free loop device: %w", err)
		}
		path = fmt.Sprintf("/dev/loop%d", number)
		loop, err := os.Open(path)
		if err != nil {
			return "", nil, err
		}
		config := loopConfig{fd: uint32(image.Fd())}
		config.info.offset, config.info.sizeLimit = uint64(root.offset), uint64(root.size)
		config.info.flags = loopReadOnly | loopAutoClear
		_, err = ioctl(loop, loopConfigure, uintptr(unsafe.Pointer(&config)))
		runtime.KeepAlive(&config)
		if err == nil {
			// Kept open until the end: an automatically cleared device goes with its last user.
			return path, func() { ioctl(loop, loopClear, 0); loop.Close() }, nil
		}
		loop.Close()
		if !errors.Is(err, syscall.EBUSY) {
			return "", nil, fmt.Errorf("%s: %w", path, err)
		}
	}
	return "", nil, errors.New("no loop device to be had")
}
