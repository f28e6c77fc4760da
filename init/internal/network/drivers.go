package network

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"instantenv/init/internal/kmod"
	"instantenv/init/internal/logging"
	"instantenv/init/internal/sysfs"
)

// networkBuses have the part of a modalias that marks a network device on a bus, before it has a driver. A virtio device
// appears on its own bus only after the driver of the PCI device behind it is loaded, hence the order.
var networkBuses = []struct{ name, network string }{
	{"pci", "bc02"},          // base class 02: network controller
	{"virtio", "d00000001v"}, // device type 1: network card
}

// loadMissingDrivers loads the drivers of network devices that have none. The error names a device that stays without
// one.
func loadMissingDrivers(modules func() (*kmod.Tree, error), log *logging.Logger) error {
	for _, bus := range networkBuses {
		devices := withoutDriver("/sys/bus/"+bus.name+"/devices", bus.network)
		if len(devices) == 0 {
			continue
		}
		tree, err := modules()
		if err != nil {
			return fmt.Errorf("no driver for %s: %w", devices[0], err)
		}
		drivers, err := tree.Resolve(devices)
		if err != nil {
			return err
		}
		if len(drivers) == 0 {
			return fmt.Errorf("no module drives %s", devices[0])
		}
		var failures []error
		for _, driver := range drivers {
			if err := tree.Load(driver); err != nil {
				failures = append(failures, err)
				continue
			}
			log.Journalf("loaded %s", driver)
		}
		if len(failures) > 0 {
			return errors.Join(failures...)
		}
	}
	return nil
}

// withoutDriver returns the modaliases of the devices on a bus that contain the text and have no driver.
func withoutDriver(directory, text string) []string {
	files, _ := filepath.Glob(directory + "/*/modalias") // the only error is a bad pattern
	var found []string
	for _, file := range files {
		modalias, err := sysfs.ReadLine(file)
		if err != nil || !strings.Contains(modalias, text) {
			continue
		}
		if _, err := os.Lstat(filepath.Join(filepath.Dir(file), "driver")); err != nil {
			found = append(found, modalias)
		}
	}
	return found
}

// isNetworkDevice reports whether a device event of the kernel is of a new network device.
func isNetworkDevice(event []byte) bool {
	action, variables, _ := strings.Cut(string(event), "\x00")
	if !strings.HasPrefix(action, "add@") {
		return false
	}
	for _, variable := range strings.Split(variables, "\x00") {
		for _, bus := range networkBuses {
			modalias, found := strings.CutPrefix(variable, "MODALIAS="+bus.name+":")
			if found && strings.Contains(modalias, bus.network) {
				return true
			}
		}
	}
	return false
}
