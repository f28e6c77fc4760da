package main

import (
	"cmp"
	"slices"
	"syscall"
	"unsafe"
)

// Numbers and layouts of linux/fiemap.h.
const (
	fiemapRequest = 0xc020660b // FS_IOC_FIEMAP
	extentLast    = 0x1
	// Extents whose bytes are not, or not as they are in the file, at their place on the device:
	// unknown, delayed, encoded, encrypted, not aligned, inline, tail.
	extentElsewhere = 0x2 | 0x4 | 0x8 | 0x80 | 0x100 | 0x200 | 0x400
	extentBatch     = 32
)

type fiemapExtent struct {
	logical, physical, length uint64
	reserved64                [2]uint64
	flags                     uint32
	reserved                  [3]uint32
}

type fiemap struct {
	start, length                  uint64
	flags, mapped, count, reserved uint32
	extents                        [extentBatch]fiemapExtent
}

// extent is a piece of a file on the device; all in bytes.
type extent struct {
	path             string
	physical, length int64
	logical          int64 // in the file
}

func (e extent) continues(next extent) bool {
	return e.physical+e.length == next.physical && e.logical+e.length == next.logical
}

// extentsOf returns where the file lies on the device. whole reports that it is one extent and stored byte for byte,
// so that reading the device has read the file.
func extentsOf(descriptor int, path string, origin int64) (found []extent, whole bool) {
	whole = true
	for start := uint64(0); ; {
		request := fiemap{start: start, length: ^uint64(0) - start, count: extentBatch}
		_, _, errno := syscall.Syscall(syscall.SYS_IOCTL, uintptr(descriptor), fiemapRequest, uintptr(unsafe.Pointer(&request)))
		if errno != 0 {
			return nil, false // a file system without FIEMAP
		}
		if request.mapped == 0 {
			return found, whole
		}
		for _, e := range request.extents[:request.mapped] {
			start = e.logical + e.length
			if e.flags&extentElsewhere != 0 {
				whole = false
				continue
			}
			next := extent{path, origin + int64(e.physical), int64(e.length), int64(e.logical)}
			if n := len(found); n > 0 && found[n-1].continues(next) {
				found[n-1].length += next.length
			} else {
				whole = whole && n == 0
				found = append(found, next)
			}
		}
		if request.extents[request.mapped-1].flags&extentLast != 0 {
			return found, whole
		}
	}
}

// layout maps bytes of the device to files.
type layout []extent

func (l layout) sort() {
	slices.SortFunc(l, func(a, b extent) int {
		return cmp.Or(cmp.Compare(a.physical, b.physical), cmp.Compare(a.path, b.path))
	})
}

// owner gives the file at that byte of the device and the place in it, or "" and the offset itself
// when it is no file's; l is sorted.
func (l layout) owner(offset int64) (path string, place int64) {
	i, exact := slices.BinarySearchFunc(l, offset, func(e extent, offset int64) int {
		return cmp.Compare(e.physical, offset)
	})
	if !exact {
		i--
	}
	if i < 0 || offset >= l[i].physical+l[i].length {
		return "", offset
	}
	return l[i].path, l[i].logical + offset - l[i].physical
}
