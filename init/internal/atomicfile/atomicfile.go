// Package atomicfile writes small files so that a reader, or a machine that loses power, sees either the
// old content or the new one in full.
package atomicfile

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"
)

// Owner of a new file.
type Owner struct{ UID, GID int }

// Root owns files when nothing else is said.
var Root = Owner{0, 0}

// A File is one to be written. Its owner and mode are exactly these, whatever the umask.
type File struct {
	Path  string
	Data  []byte
	Mode  os.FileMode
	Owner Owner
}

// Write puts data at path with exactly the given mode and owner: temporary file beside it, fsync, rename,
// fsync of the directory. The temporary file is opened with O_EXCL and O_NOFOLLOW, because the directory may
// belong to somebody other than root.
func Write(path string, data []byte, mode os.FileMode, owner Owner) error {
	file := File{path, data, mode, owner}
	if err := file.stage((*os.File).Sync); err != nil {
		return err
	}
	if err := file.commit(); err != nil {
		return err
	}
	return syncDirectory(filepath.Dir(path))
}

// WriteAll does the same for several files on one file system, in their order and with one flush of the disk instead
// of two for each. The data is on the disk before a name is; that the new names are there as well, only the next
// sync of the file system makes sure: until then a machine that loses power may have the old files, in full.
func WriteAll(files ...File) error { return writeAll(files, syncFileSystem) }

// WriteUnsynced does the same without the flush, for who sees to one before the files matter to anybody: until then a
// machine that loses power may have files that are empty.
func WriteUnsynced(files ...File) error { return writeAll(files, unsynced) }

func unsynced(*os.File) error { return nil }

func writeAll(files []File, flush func(*os.File) error) error {
	for i, file := range files {
		sync := unsynced
		if i == len(files)-1 {
			sync = flush
		}
		if err := file.stage(sync); err != nil {
			for _, staged := range files[:i] {
				os.Remove(staged.temporary())
			}
			return err
		}
	}
	for _, file := range files {
		if err := file.commit(); err != nil {
			return err
		}
	}
	return nil
}

func (f File) temporary() string {
	directory, name := filepath.Split(f.Path)
	return filepath.Join(directory, fmt.Sprintf(".%s.%d", name, os.Getpid()))
}

// stage writes the temporary file; an error leaves none behind.
func (f File) stage(sync func(*os.File) error) (err error) {
	temporary := f.temporary()
	if err := os.Remove(temporary); err != nil && !os.IsNotExist(err) {
		return fmt.Errorf("clear an earlier attempt: %w", err)
	}
	file, err := os.OpenFile(temporary, os.O_WRONLY|os.O_CREATE|os.O_EXCL|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	if _, err = file.Write(f.Data); err == nil {
		err = f.finish(file)
	}
	if err == nil {
		err = sync(file)
	}
	if closed := file.Close(); err == nil {
		err = closed
	}
	if err != nil {
		os.Remove(temporary)
	}
	return err
}

// commit gives the file its name.
func (f File) commit() error {
	err := os.Rename(f.temporary(), f.Path)
	if err != nil {
		os.Remove(f.temporary())
	}
	return err
}

func (f File) finish(file *os.File) error {
	if f.Owner != (Owner{os.Geteuid(), os.Getegid()}) {
		if err := file.Chown(f.Owner.UID, f.Owner.GID); err != nil {
			return err
		}
	}
	// After chown, which clears bits; and the mode given to open was cut by the umask.
	return file.Chmod(f.Mode)
}

// syncFileSystem is syncfs(2).
func syncFileSystem(file *os.File) error {
	if _, _, errno := syscall.Syscall(sysSyncfs, file.Fd(), 0, 0); errno != 0 {
		return fmt.Errorf("sync the file system of %s: %w", file.Name(), errno)
	}
	return nil
}

func syncDirectory(path string) error {
	directory, err := os.Open(path)
	if err != nil {
		return err
	}
	defer directory.Close()
	return directory.Sync()
}
