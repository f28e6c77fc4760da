package imds

import (
	"errors"
	"os"
	"sync"
	"syscall"
	"time"
)

// file reads a metadata file and keeps what it read until the file changes.
type file struct {
	path string

	mutex   sync.Mutex
	stamp   stamp
	current *metadata
}

// stamp identifies the file that was read: a rename brings another inode.
type stamp struct {
	inode    uint64
	size     int64
	modified syscall.Timespec
}

// load returns the file's content. It is whole at any time because its writer renames. Errors do not hold its
// path: they are shown to the guest.
func (f *file) load() (*metadata, error) {
	var info syscall.Stat_t
	if err := syscall.Stat(f.path, &info); err != nil {
		return nil, errors.New("no metadata file")
	}
	seen := stamp{info.Ino, info.Size, info.Mtim}
	f.mutex.Lock()
	defer f.mutex.Unlock()
	if f.current != nil && f.stamp == seen {
		return f.current, nil
	}
	data, err := os.ReadFile(f.path)
	if err != nil {
		return nil, errors.New("unreadable metadata file")
	}
	m, err := parseMetadata(data)
	if err != nil {
		return nil, err
	}
	m.modified = time.Unix(info.Mtim.Unix())
	// A file that was renamed into place since the stat is newer than its stamp says: it is read once more.
	f.current, f.stamp = m, seen
	return m, nil
}
