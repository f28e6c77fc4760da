package disk

import (
	"bytes"
	"errors"
	"io"
	"os"
)

// What is read of a device to know that it is blank, in bytes. The first and the last MiB hold the superblocks and
// labels of all partition tables, file systems, volume managers and RAIDs that blkid knows. Copies that outlive a
// wiped beginning are farther in: of btrfs's superblock at 64 MiB and 256 GiB, of ext4's with blocks of 4 KiB at
// 128 MiB, of XFS's at a quarter of the device.
const edge = 1 << 20

var copies = []int64{64 << 20, 128 << 20, 256 << 30}

// Blank tells whether a device has nothing but zeros wherever something could be recognised, which is how EC2 hands
// out new volumes. Asking for known signatures instead would take everything unknown for blank. It is a device with
// its size in bytes, or a plain file.
func Blank(device io.ReadSeeker) (size int64, blank bool, err error) {
	size, err = device.Seek(0, io.SeekEnd)
	if err != nil {
		return 0, false, err
	}
	if size < edge {
		return size, false, errors.New("smaller than a MiB")
	}
	places := append([]int64{0, size - edge, size / 4 &^ (edge - 1)}, copies...)
	buffer := make([]byte, edge)
	zeros := make([]byte, edge)
	for _, place := range places {
		if place > size-edge {
			continue
		}
		if _, err := device.Seek(place, io.SeekStart); err != nil {
			return size, false, err
		}
		if _, err := io.ReadFull(device, buffer); err != nil {
			return size, false, err
		}
		if !bytes.Equal(buffer, zeros) {
			return size, false, nil
		}
	}
	return size, true, nil
}

// FileSystem names the file system of a device: "ext4", "xfs", or "" when it is neither.
func FileSystem(device *os.File) (string, error) {
	start := make([]byte, 2048)
	if _, err := device.ReadAt(start, 0); err != nil {
		return "", err
	}
	switch {
	case string(start[:4]) == "XFSB":
		return "xfs", nil
	case start[1080] == 0x53 && start[1081] == 0xEF: // s_magic of struct ext4_super_block, which begins at 1024
		return "ext4", nil
	}
	return "", nil
}
