// Package atomicfile writes small files so that a reader, or a machine that loses power, sees either the
// old content or the new one in full.
package atomicfile

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"
)

// Owner of a new file; Root leaves it with the process.
type Owner struct{ UID, GID int }

// Root owns files when nothing else is said.
var Root = Owner{0, 0}

// Write puts data at path with exactly the given mode and owner: temporary file beside it, fsync, rename,
// fsync of the directory. The temporary file is opened with O_EXCL and O_NOFOLLOW, because the directory may
// belong to somebody other than root.
func Write(path string, data []byte, mode os.FileMode, owner Owner) (err error) {
	directory, name := filepath.Split(path)
	temporary := filepath.Join(directory, fmt.Sprintf(".%s.%d", name, os.Getpid()))
	if err := os.Remove(temporary); err != nil && !os.IsNotExist(err) {
		return fmt.Errorf("clear an earlier attempt: %w", err)
	}
	file, err := os.OpenFile(temporary, os.O_WRONLY|os.O_CREATE|os.O_EXCL|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(temporary)
		}
	}()
	if _, err = file.Write(data); err == nil {
		err = finish(file, mode, owner)
	}
	if closed := file.Close(); err == nil {
		err = closed
	}
	if err != nil {
		return err
	}
	if err = os.Rename(temporary, path); err != nil {
		return err
	}
	return syncDirectory(filepath.Dir(path))
}

func finish(file *os.File, mode os.FileMode, owner Owner) error {
	if owner != (Owner{os.Geteuid(), os.Getegid()}) {
		if err := file.Chown(owner.UID, owner.GID); err != nil {
			return err
		}
	}
	// After chown, which clears bits; and the mode given to open was cut by the umask.
	if err := file.Chmod(mode); err != nil {
		return err
	}
	return file.Sync()
}

func syncDirectory(path string) error {
	directory, err := os.Open(path)
	if err != nil {
		return err
	}
	defer directory.Close()
	return directory.Sync()
}
