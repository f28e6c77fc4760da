package kmod

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// FuzzIndexes feeds depmod's indexes: whatever they hold, what is resolved is a name of modules.alias, and what is inserted
// is a file of modules.dep, each once, however they need each other.
func FuzzIndexes(f *testing.F) {
	f.Add("kernel/a.ko.xz: kernel/b.ko\nkernel/b.ko:\n", "alias pci:v00001AF4d* a\nalias virtio:d[0-9]v* b\n", "pci:v00001AF4d00001000", "a")
	f.Add("a.ko: a.ko\n", "alias : \nalias x\n", ":", "a")
	f.Add(":\n", "alias \\ [\n", "", "")
	f.Fuzz(func(t *testing.T, dep, alias, modalias, name string) {
		directory := t.TempDir()
		for file, text := range map[string]string{"modules.dep": dep, "modules.alias": alias} {
			if err := os.WriteFile(filepath.Join(directory, file), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		tree, err := Open(directory)
		if err != nil {
			t.Fatal(err)
		}
		var inserted []string
		tree.insert = func(file string) error {
			if slices.Contains(inserted, file) {
				t.Errorf("%q was inserted twice", file)
			}
			inserted = append(inserted, file)
			return nil
		}
		names, err := tree.Resolve([]string{modalias})
		if err != nil {
			t.Fatal(err)
		}
		for _, resolved := range names {
			if !strings.Contains(alias, resolved) {
				t.Errorf("%q is not in modules.alias", resolved)
			}
		}
		if err := tree.Load(name); err == nil && len(inserted) == 0 && name != "" && !strings.Contains(dep, ":") {
			t.Errorf("%q was loaded from nothing", name)
		}
	})
}
