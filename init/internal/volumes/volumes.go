// Package volumes grows the root file system, mounts further volumes, and hibernates to a partition.
package volumes

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"instantenv/init/internal/disk"
	"instantenv/init/internal/kmod"
	"instantenv/init/internal/logging"
	"instantenv/init/internal/mount"
	"instantenv/init/internal/sshkey"
	"instantenv/init/internal/task"
	"instantenv/init/internal/userdata"
)

// Pauses between looks for a missing volume: EC2 attaches within seconds of the launch, people at any time.
const (
	volumePause     = 100 * time.Millisecond
	volumePauseLate = time.Second
	volumeLate      = 10 * time.Second
)

// taken are mount points, beside those of mount.Table, where a volume would hide files that the machine needs.
var taken = []string{"/bin", "/boot", "/etc", "/lib", "/lib64", "/root", "/sbin", "/sys/fs", "/usr"}

// A Mounter mounts volumes.
type Mounter struct {
	Log     *logging.Logger
	Tasks   *task.Group
	Modules func() (*kmod.Tree, error)
	Run     func(argv []string) error // a program, to its end
	Keys    KeyFile                   // of the login user
}

// A KeyFile has the keys of an account whose home a volume may hide.
type KeyFile interface {
	KeysBelow(directory string) []sshkey.PublicKey
	Authorize(keys []sshkey.PublicKey) error
}

// Mount mounts each volume when it is attached, and returns at once. It waits for a volume for as long as the machine
// runs.
func (m *Mounter) Mount(requests []userdata.MountRequest) {
	ready := make([]chan struct{}, len(requests))
	for i, request := range requests {
		ready[i] = make(chan struct{})
		m.Tasks.Spawn("volume on "+request.Path, func() error {
			for j, other := range requests[:i] {
				if strings.HasPrefix(request.Path, other.Path+"/") {
					<-ready[j] // /data before /data/cache
				}
			}
			if err := m.mount(request); err != nil {
				m.Log.Consolef("volume %s is not mounted on %s: %v", request.Device, request.Path, err)
			}
			close(ready[i])
			return nil
		})
	}
}

func (m *Mounter) mount(request userdata.MountRequest) error {
	ofTable := slices.ContainsFunc(mount.Table, func(entry mount.Entry) bool { return entry.Target == request.Path })
	if ofTable || slices.Contains(taken, request.Path) {
		return errors.New("the machine needs what is there")
	}
	path := m.waitForVolume(request)
	kind, err := m.fileSystemFor(path, request)
	if err != nil {
		return err
	}
	if tree, err := m.Modules(); err == nil {
		// Not there: it is built in, or the mount says what is wrong.
		if err := tree.Load(kind); err != nil && !errors.Is(err, os.ErrNotExist) {
			m.Log.Consolef("volume %s: %v", path, err)
		}
	}
	if err := os.MkdirAll(request.Path, 0o755); err != nil {
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

// waitForVolume returns the device's path when it is there.
func (m *Mounter) waitForVolume(request userdata.MountRequest) string {
	pause := volumePause
	for begin := time.Now(); ; time.Sleep(pause) {
		path, err := disk.Find("/sys", "/dev", request.Device)
		if err == nil {
			return path
		}
		if pause == volumePause && time.Since(begin) > volumeLate {
			m.Log.Consolef("waiting for volume %s, to be mounted on %s: %v", request.Device, request.Path, err)
			pause = volumePauseLate
		}
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
		return present, nil
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
	for _, directory := range []string{"/usr/sbin", "/sbin"} {
		program := directory + "/mkfs." + kind
		if _, err := os.Stat(program); err != nil {
			continue
		}
		m.Log.Journalf("making %s on %s", kind, path)
		return m.Run([]string{program, "-q", path})
	}
	return fmt.Errorf("the image has no mkfs.%s", kind)
}
