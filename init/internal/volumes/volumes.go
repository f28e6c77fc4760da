// Package volumes grows the root file system, mounts further volumes, and hibernates to a partition.
package volumes

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"instantenv/init/internal/disk"
	"instantenv/init/internal/kmod"
	"instantenv/init/internal/logging"
	"instantenv/init/internal/phases"
	"instantenv/init/internal/sshkey"
	"instantenv/init/internal/task"
	"instantenv/init/internal/userdata"
)

// Pauses between looks for a missing volume: EC2 attaches within seconds of the launch, people at any time.
const (
	volumePause     = 100 * time.Millisecond
	volumePauseLate = time.Second
	volumeLate      = 10 * time.Second
	// volumeBound is how long a missing volume is no failure. Who attaches one after the launch needs seconds.
	volumeBound = time.Minute
)

// A Mounter mounts volumes.
type Mounter struct {
	Log     *logging.Logger
	Tasks   *task.Group
	Book    phases.Book
	Modules func() (*kmod.Tree, error)                  // nil: the kernel has itself given what it needs
	Run     func(argv []string) error                   // a program, to its end
	Account func(name string) (uid, gid int, err error) // of a name in user data
	Keys    KeyFile                                     // of the login user

	mutex  sync.Mutex
	states []state // of the requests
}

// A state is a phase's, and its reason.
type state struct{ name, reason string }

// A KeyFile has the keys of an account whose home a volume may hide.
type KeyFile interface {
	KeysBelow(directory string) []sshkey.PublicKey
	Authorize(keys []sshkey.PublicKey) error
}

// Mount mounts each volume when it is attached, and returns at once. It waits for a volume for as long as the machine
// runs. The phase "mounted" is done when all are, and has failed when one did, or is not there after volumeBound.
func (m *Mounter) Mount(requests []userdata.MountRequest) {
	m.states = make([]state, len(requests))
	ready := make([]chan struct{}, len(requests))
	for i := range requests {
		ready[i] = make(chan struct{})
		m.states[i].name = phases.Running
	}
	m.record()
	for i, request := range requests {
		m.Tasks.Spawn("volume on "+request.Path, func() error {
			for j, other := range requests[:i] {
				if strings.HasPrefix(request.Path, other.Path+"/") {
					<-ready[j] // /data before /data/cache
				}
			}
			if err := m.mount(i, request); err != nil {
				reason := fmt.Sprintf("volume %s is not mounted on %s: %v", request.Device, request.Path, err)
				m.set(i, phases.Failed, reason)
				m.Log.Consolef("%s", reason)
			} else {
				m.set(i, phases.Done, "")
			}
			close(ready[i])
			return nil
		})
	}
}

// set changes the state of one request.
func (m *Mounter) set(i int, name, reason string) {
	m.mutex.Lock()
	defer m.mutex.Unlock()
	m.states[i] = state{name, reason}
	m.record()
}

// record makes one phase of the states.
func (m *Mounter) record() {
	name := phases.Done
	var reasons []string
	for _, state := range m.states {
		if state.name == phases.Failed || state.name == phases.Running && name == phases.Done {
			name = state.name
		}
		if state.reason != "" {
			reasons = append(reasons, state.reason)
		}
	}
	if err := m.Book.Set(phases.Mounted, name, strings.Join(reasons, "; ")); err != nil {
		m.Log.Consolef("%s: %v", phases.Mounted, err)
	}
}

func (m *Mounter) mount(i int, request userdata.MountRequest) error {
	uid, gid := -1, -1 // chown's for no change
	if request.Owner != "" {
		var err error
		if uid, gid, err = m.Account(request.Owner); err != nil {
			return err // before anything is formatted
		}
	}
	path := m.waitForVolume(i, request)
	if err := m.attach(path, request); err != nil {
		return err
	}
	return os.Chown(request.Path, uid, gid)
}

// attach mounts the device, unless that was done before this program was started again.
func (m *Mounter) attach(path string, request userdata.MountRequest) error {
	var device, directory syscall.Stat_t
	if syscall.Stat(path, &device) == nil && syscall.Stat(request.Path, &directory) == nil && device.Rdev == directory.Dev {
		return nil
	}
	kind, err := m.fileSystemFor(path, request)
	if err != nil {
		return err
	}
	if m.Modules != nil {
		m.loadModule(kind, path)
	}
	if err := makeMountPoint(request.Path); err != nil {
		return err
	}
	hidden := m.Keys.KeysBelow(request.Path)
	if err := syscall.Mount(path, request.Path, kind, 0, ""); err != nil {
		return fmt.Errorf("mount %s as %s: %w", path, kind, err)
	}
	m.Log.Journalf("mounted %s on %s", path, request.Path)
	// A volume over the user's home does not lock out who was let in before it came.
	if len(hidden) > 0 {
		return m.Keys.Authorize(hidden)
	}
	return nil
}

func (m *Mounter) loadModule(kind, path string) {
	if tree, err := m.Modules(); err == nil {
		// Not there: it is built in, or the mount says what is wrong.
		if err := tree.Load(kind); err != nil && !errors.Is(err, os.ErrNotExist) {
			m.Log.Consolef("volume %s: %v", path, err)
		}
	}
}

// makeMountPoint makes the directory, which has to be where its name says: a symbolic link may lead to what user data may
// not name.
func makeMountPoint(path string) error {
	if err := os.MkdirAll(path, 0o755); err != nil {
		return err
	}
	directory, err := os.Open(path)
	if err != nil {
		return err
	}
	defer directory.Close()
	real, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", directory.Fd()))
	if err == nil && real != path {
		err = fmt.Errorf("there is a symbolic link in the path, to %s", real)
	}
	return err
}

// waitForVolume returns the device's path when it is there.
func (m *Mounter) waitForVolume(i int, request userdata.MountRequest) string {
	pause := volumePause
	late := volumeLate
	for begin := time.Now(); ; time.Sleep(pause) {
		path, err := disk.Find("/sys", "/dev", request.Device)
		if err == nil {
			return path
		}
		if time.Since(begin) < late {
			continue
		}
		reason := fmt.Sprintf("waiting for volume %s, to be mounted on %s: %v", request.Device, request.Path, err)
		if late == volumeLate {
			m.set(i, phases.Running, reason)
			pause, late = volumePauseLate, volumeBound
		} else {
			m.set(i, phases.Failed, reason)
			late = 1 << 62 // it has been said
		}
		m.Log.Consolef("%s", reason)
	}
}

// fileSystemFor returns the type of the device's file system, after formatting a blank device if the request says so.
func (m *Mounter) fileSystemFor(path string, request userdata.MountRequest) (string, error) {
	// Exclusive: a device that is mounted, or has a partition that is, is not to be touched.
	device, err := os.OpenFile(path, os.O_RDONLY|syscall.O_EXCL, 0)
	if err != nil {
		return "", err
	}
	defer device.Close()
	present, err := disk.FileSystem(device)
	switch {
	case err != nil:
		return "", err
	case present != "" && request.Filesystem != "" && request.Filesystem != present:
		return "", fmt.Errorf("%s holds %s, not %s", path, present, request.Filesystem)
	case present != "":
		device.Close() // fsck wants it for itself
		return present, m.check(present, path)
	case request.Format != "blank":
		return "", fmt.Errorf("%s holds no file system that is known here, and user data does not say to format it", path)
	}
	_, blank, err := disk.Blank(device)
	if err != nil {
		return "", fmt.Errorf("%s: %w", path, err)
	}
	if !blank {
		return "", fmt.Errorf("%s is not blank, so it is not formatted", path)
	}
	device.Close() // mkfs wants it for itself
	return request.Filesystem, m.makeFileSystem(request.Filesystem, path)
}

// makeFileSystem runs the image's mkfs.
func (m *Mounter) makeFileSystem(kind, path string) error {
	program := find("mkfs." + kind)
	if program == "" {
		return fmt.Errorf("the image has no mkfs.%s", kind)
	}
	m.Log.Journalf("making %s on %s", kind, path)
	return m.Run([]string{program, "-q", path})
}

// check repairs what can be repaired without a question, if the image has a program for it; that of a clean file system
// ends at once. XFS repairs itself when it is mounted. The program fails when it repaired something (fsck.ext4(8): status
// 1), and does not fail then at its second run.
func (m *Mounter) check(kind, path string) error {
	program := find("fsck." + kind)
	if program == "" || kind != "ext4" {
		return nil
	}
	if m.Run([]string{program, "-p", path}) == nil {
		return nil
	}
	m.Log.Consolef("repairing %s", path)
	return m.Run([]string{program, "-p", path})
}

// find returns the path of a system's program, or "".
func find(name string) string {
	for _, directory := range []string{"/usr/sbin/", "/sbin/"} {
		if _, err := os.Stat(directory + name); err == nil {
			return directory + name
		}
	}
	return ""
}
