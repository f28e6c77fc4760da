// Package kmod loads kernel modules the way modprobe does, from the text indexes that depmod writes:
// modules.dep (what a module needs) and modules.alias (which module drives which device).
package kmod

import (
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"unsafe"
)

// compressedFile is MODULE_INIT_COMPRESSED_FILE (linux/module.h): the kernel unpacks .xz, .zst and .gz itself
// when it was built to (Linux 5.17, CONFIG_MODULE_DECOMPRESS).
const compressedFile = 4

// A Tree is the modules of one kernel release. Several goroutines may load from it.
//
// Of the thousands of lines in the indexes a boot needs ten, so they are searched as text: parsing them first took
// longer than all the rest of a network driver's way into the kernel.
type Tree struct {
	directory string
	dep       string // modules.dep
	mutex     sync.Mutex
	inserted  map[string]bool // by path
	// insert loads one file; tests put their own in.
	insert func(path string) error
}

// Open reads modules.dep in directory, for example /lib/modules/6.1.0-37-cloud-amd64.
func Open(directory string) (*Tree, error) {
	dep, err := os.ReadFile(filepath.Join(directory, "modules.dep"))
	if err != nil {
		return nil, err
	}
	return &Tree{directory: directory, dep: string(dep), inserted: map[string]bool{}, insert: insertFile}, nil
}

// find returns a module's path, relative to the tree, and the paths of what it needs, in the order in which modprobe
// would unload them.
func (t *Tree) find(name string) (file string, needs []string, found bool) {
	name = canonical(name)
	for line := range strings.Lines(t.dep) {
		file, rest, ok := strings.Cut(line, ":")
		// The first letter tells nearly all of them apart, without a copy of the name.
		base := file[strings.LastIndexByte(file, '/')+1:]
		if ok && strings.HasPrefix(base, name[:min(1, len(name))]) && canonical(base) == name {
			return file, strings.Fields(rest), true
		}
	}
	return "", nil, false
}

// Resolve returns the modules whose alias patterns match any of the given modalias strings, in the order of
// modules.alias and without repetition. One pass over the file serves all of them.
func (t *Tree) Resolve(modaliases []string) ([]string, error) {
	if len(modaliases) == 0 {
		return nil, nil
	}
	text, err := os.ReadFile(filepath.Join(t.directory, "modules.alias"))
	if err != nil {
		return nil, err
	}
	var names []string
	for line := range strings.Lines(string(text)) {
		rest, found := strings.CutPrefix(line, "alias ")
		if !found || !mayMatch(rest, modaliases) {
			continue
		}
		pattern, name, found := strings.Cut(strings.TrimSuffix(rest, "\n"), " ")
		if !found || slices.Contains(names, name) {
			continue
		}
		for _, modalias := range modaliases {
			if matches(pattern, modalias) {
				names = append(names, name)
				break
			}
		}
	}
	return names, nil
}

// mayMatch compares the names of the buses, up to the colon, which every alias of a device has.
func mayMatch(pattern string, modaliases []string) bool {
	bus := strings.IndexByte(pattern, ':') + 1
	for _, modalias := range modaliases {
		if strings.HasPrefix(modalias, pattern[:bus]) {
			return true
		}
	}
	return false
}

// Load inserts a module and what it needs. A module that is loaded already is no error; one that is not in
// modules.dep gives os.ErrNotExist, which is also the answer for one built into the kernel.
func (t *Tree) Load(name string) error {
	t.mutex.Lock()
	defer t.mutex.Unlock()
	file, needs, found := t.find(name)
	if !found {
		return fmt.Errorf("module %s: %w", name, os.ErrNotExist)
	}
	for i := len(needs) - 1; i >= 0; i-- {
		if err := t.insertOnce(needs[i]); err != nil {
			return err
		}
	}
	return t.insertOnce(file)
}

// insertOnce remembers what is in: the kernel would verify the signature of a module again, which takes tens of
// milliseconds under emulation, before it says that it has it.
func (t *Tree) insertOnce(relative string) error {
	if t.inserted[relative] {
		return nil
	}
	if err := t.insert(filepath.Join(t.directory, relative)); err != nil && !errors.Is(err, syscall.EEXIST) {
		return fmt.Errorf("insert %s: %w", path.Base(relative), err)
	}
	t.inserted[relative] = true
	return nil
}

func insertFile(name string) error {
	file, err := os.Open(name)
	if err != nil {
		return err
	}
	defer file.Close()
	flags := 0
	if !strings.HasSuffix(name, ".ko") {
		flags = compressedFile
	}
	var noParameters byte
	_, _, errno := syscall.Syscall(sysFinitModule, file.Fd(), uintptr(unsafe.Pointer(&noParameters)), uintptr(flags))
	if errno != 0 {
		return errno
	}
	return nil
}

// matches compares the literal head of the pattern first: modules.alias has ten thousand lines, and nearly all
// of them differ there.
func matches(pattern, modalias string) bool {
	head := strings.IndexAny(pattern, "*?[\\")
	if head >= 0 && !strings.HasPrefix(modalias, pattern[:head]) {
		return false
	}
	matched, err := path.Match(pattern, modalias)
	return err == nil && matched
}

// canonical turns kernel/net/core/virtio-rng.ko.xz into virtio_rng: file names use both dash and underscore.
func canonical(name string) string {
	name = path.Base(name)
	name, _, _ = strings.Cut(name, ".")
	return strings.ReplaceAll(name, "-", "_")
}
