// Package disk does what a machine needs done with its block devices: file systems grow to their volume, volumes are
// found by their names on EC2, and blank ones are told from others.
package disk

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"instantenv/init/internal/gpt"
)

// Of linux/magic.h; ext2, 3 and 4 share one.
const (
	extMagic = 0xEF53
	xfsMagic = 0x58465342
)

// Requests of ioctl(2), from linux/blkpg.h, fs/ext4/ext4.h and fs/xfs/libxfs/xfs_fs.h; the same numbers on x86_64 and
// arm64.
const (
	blkpg               = 0x1269
	blkpgAdd            = 1
	blkpgResize         = 3
	ext4ResizeFS        = 0x40086610 // _IOW('f', 16, __u64)
	xfsGeometryV1       = 0x80705864 // _IOR('X', 100, struct xfs_fsop_geom_v1)
	xfsGrowData         = 0x4010586E // _IOW('X', 110, struct xfs_growfs_data)
	xfsGeometryV1Length = 112
)

// A Report says what has grown; both may be false.
type Report struct {
	Device            string // of the file system, below /dev
	Partition, System bool
	Before, After     int64  // usable bytes of the file system
	Swap              string // the partition that was made behind it, below /dev; "": none
}

func (r Report) String() string {
	return fmt.Sprintf("%s: %d to %d MiB", r.Device, r.Before>>20, r.After>>20)
}

// Grow enlarges the file system that is mounted at target to its volume, and its partition before it, if it lies in
// one, which leaves room for swap (nil: for none). Nothing is written when there is nothing to do. It is safe to be cut
// short at any point: the next call goes on.
func Grow(target string, swap *gpt.Swap) (Report, error) {
	var info syscall.Stat_t
	if err := syscall.Stat(target, &info); err != nil {
		return Report{}, err
	}
	// Of linux/kdev_t.h: what stat(2) encodes as st_dev.
	major := info.Dev>>8&0xfff | info.Dev>>32&^0xfff
	minor := info.Dev&0xff | info.Dev>>12&^0xff
	system, err := filepath.EvalSymlinks(fmt.Sprintf("/sys/dev/block/%d:%d", major, minor))
	if err != nil {
		return Report{}, fmt.Errorf("%s is not on a block device: %w", target, err)
	}
	report := Report{Device: filepath.Base(system)}
	if report.Before, err = size(target); err != nil {
		return report, err
	}
	number, err := numberOf(system + "/partition")
	switch {
	case err == nil:
		growth, err := growPartition(filepath.Dir(system), int(number), swap)
		report.Partition = growth != nil
		if err != nil {
			return report, err
		}
		if growth != nil && growth.Swap != nil {
			report.Swap = partitionName(filepath.Base(filepath.Dir(system)), growth.Swap.Number)
		}
	case !errors.Is(err, os.ErrNotExist): // then it is a whole disk
		return report, err
	}
	sectors, err := numberOf(system + "/size")
	if err != nil {
		return report, err
	}
	if err := growFileSystem(target, sectors*gpt.SectorSize); err != nil {
		return report, err
	}
	report.After, err = size(target)
	report.System = report.After > report.Before
	return report, err
}

// partitionName is what the kernel calls a partition: a p parts it from a disk whose name ends in a digit.
func partitionName(disk string, number int) string {
	if last := disk[len(disk)-1]; last >= '0' && last <= '9' {
		disk += "p"
	}
	return disk + strconv.Itoa(number)
}

// growPartition enlarges a partition on the disk of that directory of sysfs, in the table and in the kernel. It is nil
// when there was nothing to do.
func growPartition(system string, number int, swap *gpt.Swap) (*gpt.Growth, error) {
	sectors, err := numberOf(system + "/size")
	if err != nil {
		return nil, err
	}
	if block, err := numberOf(system + "/queue/logical_block_size"); err != nil || block != gpt.SectorSize {
		return nil, fmt.Errorf("logical blocks of %d bytes: %w", block, errors.Join(err, errors.ErrUnsupported))
	}
	path := "/dev/" + filepath.Base(system)
	disk, err := os.OpenFile(path, os.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	defer disk.Close()
	growth, err := gpt.Plan(disk, sectors, number, swap)
	if err != nil || growth == nil {
		return nil, err
	}
	if err := apply(path, growth.Writes); err != nil {
		return nil, fmt.Errorf("partition table: %w", err)
	}
	if err := tellKernel(disk, blkpgResize, growth.Partition); err != nil {
		return growth, fmt.Errorf("resize partition %d: %w", number, err)
	}
	if growth.Swap != nil {
		if err := tellKernel(disk, blkpgAdd, *growth.Swap); err != nil {
			return growth, fmt.Errorf("add partition %d: %w", growth.Swap.Number, err)
		}
	}
	return growth, nil
}

// apply does the writes, each on the disk before the next, and each as one request: past the page cache, which would
// write in blocks of its own.
func apply(path string, writes []gpt.Write) error {
	file, err := os.OpenFile(path, os.O_WRONLY|syscall.O_DIRECT, 0)
	if err != nil {
		return err
	}
	defer file.Close()
	for _, write := range writes {
		// Direct writes come from aligned memory, such as a mapping's.
		buffer, err := syscall.Mmap(-1, 0, len(write.Data), syscall.PROT_READ|syscall.PROT_WRITE,
			syscall.MAP_ANON|syscall.MAP_PRIVATE)
		if err != nil {
			return err
		}
		copy(buffer, write.Data)
		_, err = file.WriteAt(buffer, write.Offset)
		_ = syscall.Munmap(buffer)
		if err == nil {
			err = file.Sync()
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// tellKernel has it do what the table says now: it does not read the table of a disk in use again.
func tellKernel(disk *os.File, operation int32, changed gpt.Partition) error {
	partition := struct {
		start, length int64
		number        int32
		names         [128]byte
		_             int32
	}{start: changed.Start, length: changed.Bytes, number: int32(changed.Number)}
	argument := struct {
		op, flags, length int32
		data              unsafe.Pointer
	}{op: operation, length: int32(unsafe.Sizeof(partition)), data: unsafe.Pointer(&partition)}
	return ioctl(disk, blkpg, unsafe.Pointer(&argument))
}

// growFileSystem enlarges a mounted file system to a device of so many bytes.
func growFileSystem(target string, bytes int64) error {
	var status syscall.Statfs_t
	if err := syscall.Statfs(target, &status); err != nil {
		return err
	}
	directory, err := os.Open(target)
	if err != nil {
		return err
	}
	defer directory.Close()
	switch status.Type {
	case extMagic:
		blocks := uint64(bytes / status.Bsize)
		if err := ioctl(directory, ext4ResizeFS, unsafe.Pointer(&blocks)); err != nil {
			return fmt.Errorf("grow ext4 on %s: %w", target, err)
		}
	case xfsMagic:
		return growXFS(directory, bytes)
	default:
		return fmt.Errorf("%s has a file system of type %#x: %w", target, status.Type, errors.ErrUnsupported)
	}
	return nil
}

func growXFS(directory *os.File, bytes int64) error {
	var geometry struct {
		blockSize, rtExtentSize, agBlocks, agCount, logBlocks, sectorSize, inodeSize, maxPercent uint32
		dataBlocks                                                                               uint64
		rest                                                                                     [xfsGeometryV1Length - 40]byte
	}
	if err := ioctl(directory, xfsGeometryV1, unsafe.Pointer(&geometry)); err != nil {
		return fmt.Errorf("geometry of XFS on %s: %w", directory.Name(), err)
	}
	growth := struct {
		blocks     uint64
		maxPercent uint32
		_          uint32
	}{blocks: uint64(bytes) / uint64(geometry.blockSize), maxPercent: geometry.maxPercent}
	if growth.blocks <= geometry.dataBlocks {
		return nil
	}
	if err := ioctl(directory, xfsGrowData, unsafe.Pointer(&growth)); err != nil {
		return fmt.Errorf("grow XFS on %s: %w", directory.Name(), err)
	}
	return nil
}

func size(target string) (int64, error) {
	var status syscall.Statfs_t
	err := syscall.Statfs(target, &status)
	return int64(status.Blocks) * status.Bsize, err
}

func numberOf(path string) (int64, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
}

func ioctl(file *os.File, request uintptr, argument unsafe.Pointer) error {
	if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, file.Fd(), request, uintptr(argument)); errno != 0 {
		return errno
	}
	return nil
}
