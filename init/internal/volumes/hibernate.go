package volumes

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"instantenv/init/internal/gpt"
	"instantenv/init/internal/imds"
	"instantenv/init/internal/swap"
	"instantenv/init/internal/sysfs"
)

// ResumeDevice finds the device of the kernel's resume= by its number in sysfs.
func ResumeDevice(sys string) (string, error) {
	number, err := sysfs.ReadLine(sys + "/power/resume")
	if err != nil {
		return "", fmt.Errorf("the kernel cannot hibernate: %w", err)
	}
	if number == "0:0" || number == "" {
		return "", errors.New("the kernel's command line has no resume=")
	}
	if offset, err := sysfs.ReadLine(sys + "/power/resume_offset"); err == nil && offset != "0" {
		return "", errors.New("resume_offset=: swap files are not supported, only partitions")
	}
	target, err := os.Readlink(sys + "/dev/block/" + number)
	if err != nil {
		return "", fmt.Errorf("resume device: %w", err)
	}
	return "/dev/" + filepath.Base(target), nil
}

// The partition that the kernel's resume= names is made when a machine that may hibernate starts for the first time, as
// large as its memory. The image cannot contain it, because the size of the memory is not known when it is baked.
const (
	resumeArgument = "resume=PARTUUID="
	// configuredPath says true on a machine that was launched with HibernationOptions.
	configuredPath = "/latest/meta-data/hibernation/configured"
	// ConfiguredPatience is for an answer; without one the root does not grow at this start.
	ConfiguredPatience = time.Minute
	// swapMargin is for swap's first page and what the image of the memory says of itself.
	swapMargin = 16 << 20
)

// resumePartition is the UUID of the partition that the kernel's command line names; false: none.
func resumePartition(commandLine string) (id [16]byte, named bool, err error) {
	for _, argument := range strings.Fields(commandLine) {
		if uuid, found := strings.CutPrefix(argument, resumeArgument); found {
			id, err = gpt.ParseID(uuid)
			return id, true, err
		}
	}
	return id, false, nil
}

// hibernationSwap returns the swap for which the root leaves room, or nil.
func hibernationSwap(sys, commandLine string, ask func(path string, deadline time.Time) ([]byte, error)) (*gpt.Swap, error) {
	id, named, err := resumePartition(commandLine)
	if err != nil || !named {
		return nil, err
	}
	swap := &gpt.Swap{ID: id}
	if _, err := ResumeDevice(sys); err == nil {
		return swap, nil // it is there
	}
	answer, err := ask(configuredPath, time.Now().Add(ConfiguredPatience))
	if errors.Is(err, imds.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("whether to make room for hibernation: %w", err)
	}
	if strings.TrimSpace(string(answer)) != "true" {
		return nil, nil
	}
	var info syscall.Sysinfo_t
	if err := syscall.Sysinfo(&info); err != nil {
		return nil, err
	}
	swap.Bytes = int64(info.Totalram)*int64(info.Unit) + swapMargin
	return swap, nil
}

// Suspend hibernates to a device. It returns when the machine has resumed, or could not hibernate.
func Suspend(device string) error {
	if err := swap.Prepare(device); err != nil {
		return err
	}
	// EBUSY: it is in use as swap already.
	err := swap.On(device)
	if err != nil && !errors.Is(err, syscall.EBUSY) {
		return fmt.Errorf("swap on %s: %w", device, err)
	}
	ours := err == nil
	syscall.Sync() // should the image be lost, then no file is
	err = os.WriteFile("/sys/power/state", []byte("disk"), 0)
	if ours {
		_ = swap.Off(device) // it may stay
	}
	if err != nil {
		return fmt.Errorf("/sys/power/state: %w", err)
	}
	return nil
}
