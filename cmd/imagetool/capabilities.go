package main

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"unsafe"
)

// capabilityAttribute holds the privileges that a program gets whoever starts it (capabilities(7)).
const capabilityAttribute = "security.capability"

// Layout of struct vfs_cap_data (linux/capability.h): a revision with one flag, then one or two pairs of 32 bits
// (permitted, inheritable), then in revision 3 the user id that is root of the namespace.
const (
	capabilityRevisionMask = 0xff000000
	capabilityEffective    = 0x000001
)

// capabilitySizes are the sizes of the revisions, in bytes.
var capabilitySizes = map[uint32]int{0x01000000: 12, 0x02000000: 20, 0x03000000: 24}

// capabilityNames are the kernel's, by number (linux/capability.h as of 6.12).
var capabilityNames = []string{
	"chown", "dac_override", "dac_read_search", "fowner", "fsetid", "kill", "setgid", "setuid", "setpcap",
	"linux_immutable", "net_bind_service", "net_broadcast", "net_admin", "net_raw", "ipc_lock", "ipc_owner",
	"sys_module", "sys_rawio", "sys_chroot", "sys_ptrace", "sys_pacct", "sys_admin", "sys_boot", "sys_nice",
	"sys_resource", "sys_time", "sys_tty_config", "mknod", "lease", "audit_write", "audit_control", "setfcap",
	"mac_override", "mac_admin", "syslog", "wake_alarm", "block_suspend", "audit_read", "perfmon", "bpf",
	"checkpoint_restore",
}

// shippedCapabilities is what the packages of Debian 12 and Enterprise Linux 9 give to programs, as far as an image
// for servers has them. It stands beside setIDPrograms: a program that is setuid in one may have a capability in the
// other.
var shippedCapabilities = map[string][]string{
	"/usr/bin/arping":     {"net_raw"},
	"/usr/bin/clockdiff":  {"net_raw"},
	"/usr/bin/fping":      {"net_raw"},
	"/usr/bin/mtr-packet": {"net_raw"},
	"/usr/bin/newgidmap":  {"setgid"},
	"/usr/bin/newuidmap":  {"setuid"},
	"/usr/bin/ping":       {"net_raw", "net_admin"}, // net_admin (for marks) in Enterprise Linux 8 and Fedora
	"/usr/sbin/arping":    {"net_raw"},
	"/usr/sbin/clockdiff": {"net_raw"},
	"/usr/sbin/fping":     {"net_raw"},
	"/usr/sbin/ping":      {"net_raw", "net_admin"},
}

// fileCapabilities is a parsed attribute: bit n of a set is capability number n.
type fileCapabilities struct {
	permitted, inheritable uint64
	effective              bool
}

// parseCapabilities reads the value of the attribute, and reports false for what the kernel would not accept.
func parseCapabilities(value []byte) (fileCapabilities, bool) {
	if len(value) < 4 {
		return fileCapabilities{}, false
	}
	head := binary.LittleEndian.Uint32(value)
	if size, known := capabilitySizes[head&capabilityRevisionMask]; !known || len(value) != size {
		return fileCapabilities{}, false
	}
	parsed := fileCapabilities{effective: head&capabilityEffective != 0}
	for word, rest := 0, value[4:]; len(rest) >= 8; word, rest = word+1, rest[8:] {
		parsed.permitted |= uint64(binary.LittleEndian.Uint32(rest)) << (32 * word)
		parsed.inheritable |= uint64(binary.LittleEndian.Uint32(rest[4:])) << (32 * word)
	}
	return parsed, true
}

// names lists the capabilities, lowest number first.
func (c fileCapabilities) names() (names []string) {
	for number := range 64 {
		if (c.permitted|c.inheritable)>>number&1 == 0 {
			continue
		}
		if number < len(capabilityNames) {
			names = append(names, capabilityNames[number])
		} else {
			names = append(names, fmt.Sprint(number))
		}
	}
	return names
}

// judgeCapabilities reports the capabilities of a file beyond those that the distributions give it; path begins with
// a slash.
func (m modeRules) judgeCapabilities(path string, value []byte) (detail string, found bool) {
	if m.exempts(path) {
		return "", false
	}
	parsed, ok := parseCapabilities(value)
	if !ok {
		return "malformed " + capabilityAttribute, true
	}
	var extra []string
	for _, name := range parsed.names() {
		if !slices.Contains(shippedCapabilities[path], name) {
			extra = append(extra, "cap_"+name)
		}
	}
	return "has " + strings.Join(extra, ", "), len(extra) > 0
}

// capabilitiesOf reads the attribute of an open file; nil when it has none, and empty when the kernel calls it
// malformed.
func capabilitiesOf(descriptor int) ([]byte, error) {
	name, err := syscall.BytePtrFromString(capabilityAttribute)
	if err != nil {
		return nil, err
	}
	value := make([]byte, 64) // the longest revision has 24 bytes; ERANGE is an error
	size, _, errno := syscall.Syscall6(syscall.SYS_FGETXATTR, uintptr(descriptor), uintptr(unsafe.Pointer(name)),
		uintptr(unsafe.Pointer(&value[0])), uintptr(len(value)), 0, 0)
	switch errno {
	case 0:
		return value[:size], nil
	case syscall.ENODATA, syscall.ENOTSUP:
		return nil, nil
	case syscall.EINVAL:
		return []byte{}, nil
	}
	return nil, fmt.Errorf("%s: %w", capabilityAttribute, errno)
}
