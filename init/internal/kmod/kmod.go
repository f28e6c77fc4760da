// Package kmod loads kernel modules the way modprobe does, from the text indexes that depmod writes:
// modules.dep (what a module needs) and modules.alias (which module drives which device).
package kmod

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"unsafe"
)

// compressedFile is MODULE_INIT_COMPRESSED_FILE (linux/module.h): the kernel unpacks .xz, .zst and .gz itself
// when it was built to (Linux 5.17, CONFIG_MODULE_DECOMPRESS).
const compressedFile = 4

// A Tree is the modules of one kernel release. Several goroutines may load from it.
type Tree struct {
	directory string
	files     map[string]module // by canonical module name
	mutex     sync.Mutex
	inserted  map[string]bool // by path
	// insert loads one file; tests put their own in.
	insert func(path string) error
}

type module struct {
	path  string // relative to the tree
	needs string // paths, in the order in which modprobe would unload them
}

// Open reads modules.dep in directory, for example /lib/modules/6.1.0-37-cloud-amd64.
func Open(directory string) (*Tree, error) {
	file, err := os.Open(filepath.Join(directory, "modules.dep"))
	if err != nil {
		return nil, err
	}
	defer file.Close()
	tree := &Tree{directory: directory, files: map[string]module{}, inserted: map[string]bool{}, insert: insertFile}
	lines := longLines(file)
	for lines.Scan() {
		name, needs, found := strings.Cut(lines.Text(), ":")
		if found {
			tree.files[canonical(name)] = module{path: name, needs: needs}
		}
	}
	return tree, lines.Err()
}

// Resolve returns the modules whose alias patterns match any of the given modalias strings, in the order of
// modules.alias and without repetition. One pass over the file serves all of them.
func (t *Tree) Resolve(modaliases []string) ([]string, error) {
	file, err := os.Open(filepath.Join(t.directory, "modules.alias"))
	if err != nil {
		return nil, err
	}
	defer file.Close()
	var names []string
	seen := map[string]bool{}
	lines := longLines(file)
	for lines.Scan() {
		rest, found := strings.CutPrefix(lines.Text(), "alias ")
		if !found {
			continue
		}
		pattern, name, found := strings.Cut(rest, " ")
		if !found || seen[name] {
			continue
		}
		for _, modalias := range modaliases {
			if matches(pattern, modalias) {
				seen[name] = true
				names = append(names, name)
				break
			}
		}
	}
	return names, lines.Err()
}

// Load inserts a module and what it needs. A module that is loaded already is no error; one that is not in
// modules.dep gives os.ErrNotExist, which is also the answer for one built into the kernel.
func (t *Tree) Load(name string) error {
	t.mutex.Lock()
	defer t.mutex.Unlock()
	wanted, found := t.files[canonical(name)]
	if !found {
		return fmt.Errorf("module %s: %w", name, os.ErrNotExist)
	}
	needs := strings.Fields(wanted.needs)
	for i := len(needs) - 1; i >= 0; i-- {
		if err := t.insertOnce(needs[i]); err != nil {
			return err
		}
	}
	return t.insertOnce(wanted.path)
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

func longLines(file *os.File) *bufio.Scanner {
	lines := bufio.NewScanner(file)
	lines.Buffer(make([]byte, 0, 64<<10), 1<<20)
	return lines
}
