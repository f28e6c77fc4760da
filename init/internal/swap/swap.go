// Package swap makes swap space on a device, and switches it on and off.
package swap

import (
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"os"
	"strings"
	"syscall"
	"unsafe"

	"instantenv/init/internal/disk"
)

// Prepare formats a blank device as swap. A device that is neither blank nor swap is an error.
func Prepare(path string) error {
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer file.Close()
	page := make([]byte, os.Getpagesize())
	if _, err := file.ReadAt(page, 0); err != nil {
		return err
	}
	if strings.HasSuffix(string(page), signature) {
		return nil
	}
	size, blank, err := disk.Blank(file)
	if err != nil {
		return err
	}
	if !blank {
		return fmt.Errorf("%s holds something that is not swap", path)
	}
	first, err := header(size, len(page))
	if err != nil {
		return err
	}
	if _, err := file.WriteAt(first, 0); err != nil {
		return err
	}
	return file.Sync()
}

// signature ends the first page of swap (union swap_header in linux/swap.h).
const signature = "SWAPSPACE2"

func header(size int64, pageSize int) ([]byte, error) {
	page := make([]byte, pageSize)
	binary.NativeEndian.PutUint32(page[1024:], 1)                              // version
	binary.NativeEndian.PutUint32(page[1028:], uint32(size/int64(pageSize)-1)) // last page
	if _, err := rand.Read(page[1036:1052]); err != nil {                      // UUID, after the count of bad pages
		return nil, err
	}
	copy(page[pageSize-len(signature):], signature)
	return page, nil
}

// On is swapon(2) without flags.
func On(path string) error { return call(syscall.SYS_SWAPON, path) }

// Off is swapoff(2).
func Off(path string) error { return call(syscall.SYS_SWAPOFF, path) }

func call(number uintptr, path string) error {
	name, err := syscall.BytePtrFromString(path)
	if err != nil {
		return err
	}
	if _, _, errno := syscall.Syscall(number, uintptr(unsafe.Pointer(name)), 0, 0); errno != 0 {
		return errno
	}
	return nil
}
