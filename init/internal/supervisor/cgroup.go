package supervisor

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"instantenv/init/internal/sysfs"
)

// Of control groups (cgroup v2, Documentation/admin-guide/cgroup-v2.rst): every service has one, so that a stop
// reaches whatever it forked; process 1 has its own, because a group other than the root that delegates controllers
// may hold no processes, and who starts containers (dockerd does by default) makes groups beside these.
const (
	cgroupRoot     = "/sys/fs/cgroup"
	ServiceCgroups = cgroupRoot + "/services"
	ownCgroup      = cgroupRoot + "/instant-init"
)

// A cgroup is a directory of the hierarchy, held open.
type cgroup struct {
	path      string
	directory *os.File
}

// openCgroup makes the group of a service, or opens it.
func openCgroup(path string) (*cgroup, error) {
	if err := os.MkdirAll(path, 0o755); err != nil {
		return nil, err
	}
	directory, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	return &cgroup{path, directory}, nil
}

// processes are the pids in the group; a nil group has none.
func (c *cgroup) processes() []int {
	if c == nil {
		return nil
	}
	text, err := os.ReadFile(c.path + "/cgroup.procs")
	if err != nil {
		return nil
	}
	var pids []int
	for _, field := range strings.Fields(string(text)) {
		if pid, err := strconv.Atoi(field); err == nil && pid > 0 { // 0: not of this pid namespace
			pids = append(pids, pid)
		}
	}
	return pids
}

// end sends SIGTERM to the group's processes, and kills those that are left after the grace period, also in groups below.
// It reports whether it had to kill.
func (c *cgroup) end(grace time.Duration) (killed bool) {
	if c == nil {
		return false
	}
	for _, pid := range c.processes() {
		_ = syscall.Kill(pid, syscall.SIGTERM)
	}
	until := time.Now().Add(grace)
	for c.populated() {
		if time.Now().After(until) {
			_ = os.WriteFile(c.path+"/cgroup.kill", []byte("1"), 0) // Linux 5.14
			for _, pid := range c.processes() {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
			return true
		}
		time.Sleep(5 * time.Millisecond)
	}
	return false
}

// populated reports whether a live process is in the group or in one below it.
func (c *cgroup) populated() bool {
	text, err := os.ReadFile(c.path + "/cgroup.events")
	return err == nil && strings.Contains(string(text), "populated 1")
}

// delegateControllers makes the hierarchy fit for services and for a container engine. It is not on the way to the
// first login: moving a process and switching controllers on wait for the kernel's grace periods, and the first group
// with a memory or cpuset controller makes the kernel rewrite its own allocators' code while all processors run it
// (memcg_kmem_enabled_key, cpusets_enabled_key). Under QEMU 7.2's emulation of two busy processors that was seen to
// hang the machine for good, in one of some fifty boots: both spin on a breakpoint that is not there any more.
func delegateControllers() error {
	if err := os.MkdirAll(ownCgroup, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(ownCgroup+"/cgroup.procs", []byte("1"), 0); err != nil {
		return fmt.Errorf("process 1: %w", err)
	}
	if err := os.MkdirAll(ServiceCgroups, 0o755); err != nil {
		return err
	}
	var failures []error
	for _, group := range []string{cgroupRoot, ServiceCgroups} {
		controllers, err := sysfs.ReadLine(group + "/cgroup.controllers")
		if err != nil {
			return err
		}
		for _, controller := range strings.Fields(controllers) {
			// One by one: a controller that cannot be had does not take the others along.
			err := os.WriteFile(group+"/cgroup.subtree_control", []byte("+"+controller), 0)
			if err != nil {
				failures = append(failures, fmt.Errorf("%s in %s: %w", controller, group, err))
			}
		}
	}
	// A service that forks without end must leave process 1 the threads with which it ends it.
	least := math.MaxInt
	for _, name := range []string{"pid_max", "threads-max"} { // the second one is what 1 GiB of memory reaches first
		if most, err := sysfs.ReadLine("/proc/sys/kernel/" + name); err == nil {
			if number, err := strconv.Atoi(most); err == nil {
				least = min(least, number)
			}
		}
	}
	limit := []byte(strconv.Itoa(least / 10 * 9))
	failures = append(failures, os.WriteFile(filepath.Join(ServiceCgroups, "pids.max"), limit, 0))
	// As under systemd: mounts made here are seen in the mount namespaces of containers.
	failures = append(failures, syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_SHARED, ""))
	return errors.Join(failures...)
}

// Delegate hands on the controllers of the control groups, once.
func (v *Supervisor) Delegate() {
	if v.Cgroups == "" {
		return
	}
	v.delegation.Do(func() {
		if err := delegateControllers(); err != nil {
			v.Log.Consolef("control groups: %v", err)
		}
	})
}
