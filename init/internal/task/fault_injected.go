//go:build faults

package task

import (
	"strings"

	"instantenv/init/internal/sysfs"
)

// faultFile names what is to panic in a test build (go build -tags faults).
const faultFile = "/etc/instant-init.fault"

// injectFault panics when the work that begins is the one that the file names.
func injectFault(what string) {
	if name, err := sysfs.ReadLine(faultFile); err == nil && strings.TrimSpace(name) == what {
		panic("injected fault")
	}
}
