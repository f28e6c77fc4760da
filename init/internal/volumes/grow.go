package volumes

import (
	"fmt"
	"os"

	"instantenv/init/internal/disk"
	"instantenv/init/internal/gpt"
	"instantenv/init/internal/imds"
	"instantenv/init/internal/logging"
	"instantenv/init/internal/sysfs"
)

// GrowRoot enlarges the root to the end of its volume, or to the swap behind it.
func GrowRoot(log *logging.Logger) error {
	commandLine, err := sysfs.ReadLine("/proc/cmdline")
	if err != nil {
		return err
	}
	client := imds.New(imds.Default)
	defer client.Close()
	swap, err := hibernationSwap("/sys", commandLine, client.Get)
	if err != nil {
		return err
	}
	report, err := Grow("/", swap, log)
	if err != nil || report.Swap == "" {
		return err
	}
	number, err := sysfs.ReadLine("/sys/class/block/" + report.Swap + "/dev")
	if err != nil {
		return err
	}
	// The kernel looks for an image there, and finds none: the partition is new.
	if err := os.WriteFile("/sys/power/resume", []byte(number), 0); err != nil {
		return fmt.Errorf("/sys/power/resume: %w", err)
	}
	log.Journalf("made /dev/%s to hibernate to", report.Swap)
	return nil
}

// Grow enlarges the file system on target to its volume, or to the swap behind it, which may be nil.
func Grow(target string, swap *gpt.Swap, log *logging.Logger) (disk.Report, error) {
	report, err := disk.Grow(target, swap)
	if report.Partition || report.System {
		log.Journalf("grew %s", report)
	}
	return report, err
}
