package main

import (
	"cmp"
	"slices"
	"syscall"
	"unsafe"

	"instantenv/internal/secrets"
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

// extentsOf returns where the file lies on the device. complete reports that all of it is there byte for byte, so that
// reading the device has read the file, but for what crosses from one extent to the next.
func extentsOf(descriptor int, path string, origin int64) (found []extent, complete bool) {
	complete = true
	for start := uint64(0); ; {
		request := fiemap{start: start, length: ^uint64(0) - start, count: extentBatch}
		_, _, errno := syscall.Syscall(syscall.SYS_IOCTL, uintptr(descriptor), fiemapRequest, uintptr(unsafe.Pointer(&request)))
		if errno != 0 {
			return nil, false // a file system without FIEMAP
		}
		if request.mapped == 0 {
			return found, complete
		}
		for _, e := range request.extents[:request.mapped] {
			start = e.logical + e.length
			if e.flags&extentElsewhere != 0 {
				complete = false
				continue
			}
			next := extent{path, origin + int64(e.physical), int64(e.length), int64(e.logical)}
			if n := len(found); n > 0 && found[n-1].continues(next) {
				found[n-1].length += next.length
			} else {
				found = append(found, next)
			}
		}
		if request.extents[request.mapped-1].flags&extentLast != 0 {
			return found, complete
		}
	}
}

// part is a range of a file, in bytes.
type part struct{ start, end int64 }

// joints returns the parts of a file where a secret may begin that is judged by bytes of another extent too: around
// each place where an extent ends or begins within the file.
func joints(extents []extent) (parts []part) {
	for i := 1; i < len(extents); i++ {
		for _, place := range []int64{extents[i-1].logical + extents[i-1].length, extents[i].logical} {
			around := part{
				max(0, place-secrets.LookAhead) / secrets.PartAlignment * secrets.PartAlignment,
				(place + secrets.LookBehind + secrets.PartAlignment - 1) / secrets.PartAlignment * secrets.PartAlignment,
			}
			if n := len(parts); n > 0 && around.start <= parts[n-1].end {
				parts[n-1].end = max(parts[n-1].end, around.end)
			} else {
				parts = append(parts, around)
			}
		}
	}
	return parts
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
