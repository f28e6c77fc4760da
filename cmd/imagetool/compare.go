package main

import (
	"crypto/sha256"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// expected lists where two bakes of one plan may differ, and why. Patterns are those of path.Match.
// docs/reproducibility.md has the table. None is needed for Debian.
var expected = []struct{ pattern, reason string }{
	{"var/lib/rpm/rpmdb.sqlite", "times of installation, and SQLite places rows as it goes (dnf bases; not seen yet)"},
	{"usr/lib/sysimage/rpm/rpmdb.sqlite", "the same, where rpm has it by now (not seen yet)"},
}

// entry is everything about a file that a machine can see, except for its times and its inode number.
type entry struct {
	Mode   uint32 `json:"mode"` // type and permissions
	UID    uint32 `json:"uid"`
	GID    uint32 `json:"gid"`
	Device uint64 `json:"device,omitempty"`
	Size   int64  `json:"size,omitempty"`   // of regular files
	SHA256 string `json:"sha256,omitempty"` // of a regular file's content
	Target string `json:"target,omitempty"` // of a symbolic link
}

// difference is one path that is not the same in both.
type difference struct {
	Path     string   `json:"path"`
	What     []string `json:"what"`
	Expected string   `json:"expected,omitempty"` // the reason, when it is one that may be
}

type comparison struct {
	Files       int          `json:"files"` // in either
	Differences []difference `json:"differences"`
}

func runCompare(args []string, stdout io.Writer) (int, error) {
	flags := flag.NewFlagSet("compare", flag.ContinueOnError)
	a := flags.String("a", "", "disk image or block device")
	b := flags.String("b", "", "the other one")
	asJSON := flags.Bool("json", false, "print one JSON object")
	list := flags.Bool("expected", false, "print where two bakes of one plan may differ, and do nothing else")
	if err := parse(flags, args); err != nil {
		return exitError, err
	}
	if *list {
		return exitOK, printExpected(stdout)
	}
	if *a == "" || *b == "" {
		return exitError, fmt.Errorf("%w: --a and --b are needed", errUsage)
	}
	trees := [2]map[string]entry{}
	for i, device := range []string{*a, *b} {
		var err error
		if trees[i], err = readTree(device); err != nil {
			return exitError, fmt.Errorf("%s: %w", device, err)
		}
	}
	result := compareTrees(trees[0], trees[1])
	if err := result.print(stdout, *asJSON); err != nil {
		return exitError, err
	}
	if slices.ContainsFunc(result.Differences, func(d difference) bool { return d.Expected == "" }) {
		return exitFindings, nil
	}
	return exitOK, nil
}

func printExpected(out io.Writer) error {
	fmt.Fprint(out, "| path | why it may differ |\n|---|---|\n")
	for _, e := range expected {
		if _, err := fmt.Fprintf(out, "| `/%s` | %s |\n", e.pattern, e.reason); err != nil {
			return err
		}
	}
	return nil
}

func (c comparison) print(out io.Writer, asJSON bool) error {
	if asJSON {
		return json.NewEncoder(out).Encode(c)
	}
	unexpected := 0
	for _, d := range c.Differences {
		reason := d.Expected
		if reason == "" {
			unexpected++
			reason = "NOT EXPECTED"
		}
		fmt.Fprintf(out, "%s: %s (%s)\n", d.Path, strings.Join(d.What, ", "), reason)
	}
	_, err := fmt.Fprintf(out, "%d files, %d differ, %d of them unexpectedly\n", c.Files, len(c.Differences), unexpected)
	return err
}

// readTree mounts the root file system read-only and reads all of it.
func readTree(path string) (tree map[string]entry, err error) {
	device, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer device.Close()
	root, err := findRoot(device)
	if err != nil {
		return nil, err
	}
	done := make(chan error)
	go func() {
		done <- withMounted(device, root, func(directory string) error {
			tree, err = treeOf(directory)
			return err
		})
	}()
	return tree, <-done
}

func treeOf(directory string) (map[string]entry, error) {
	tree := map[string]entry{}
	err := filepath.WalkDir(directory, func(full string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var status syscall.Stat_t
		if err := syscall.Lstat(full, &status); err != nil {
			return fmt.Errorf("%s: %w", full, err)
		}
		found := entry{Mode: status.Mode, UID: status.Uid, GID: status.Gid}
		switch status.Mode & syscall.S_IFMT {
		case syscall.S_IFREG:
			found.Size = status.Size
			if found.SHA256, err = digest(full); err != nil {
				return err
			}
		case syscall.S_IFLNK:
			if found.Target, err = os.Readlink(full); err != nil {
				return err
			}
		case syscall.S_IFCHR, syscall.S_IFBLK:
			found.Device = uint64(status.Rdev)
		}
		tree["/"+strings.TrimPrefix(strings.TrimPrefix(full, directory), "/")] = found
		return nil
	})
	return tree, err
}

func digest(path string) (string, error) {
	file, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer file.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, file); err != nil {
		return "", err
	}
	return fmt.Sprintf("%x", sum.Sum(nil)), nil
}

func compareTrees(a, b map[string]entry) comparison {
	paths := slices.Sorted(maps.Keys(a))
	for name := range b {
		if _, ok := a[name]; !ok {
			paths = append(paths, name)
		}
	}
	slices.Sort(paths)
	result := comparison{Files: len(paths), Differences: []difference{}}
	for _, name := range paths {
		first, inA := a[name]
		second, inB := b[name]
		var what []string
		switch {
		case !inB:
			what = []string{"only in a"}
		case !inA:
			what = []string{"only in b"}
		default:
			what = first.differs(second)
		}
		if what != nil {
			result.Differences = append(result.Differences, difference{name, what, whyExpected(name, what)})
		}
	}
	return result
}

// differs names what is not the same.
func (e entry) differs(f entry) (what []string) {
	if e.Mode&syscall.S_IFMT != f.Mode&syscall.S_IFMT {
		return []string{"type"}
	}
	for _, one := range []struct {
		name string
		same bool
	}{
		{"mode", e.Mode == f.Mode}, {"owner", e.UID == f.UID && e.GID == f.GID}, {"device", e.Device == f.Device},
		{"content", e.SHA256 == f.SHA256 && e.Size == f.Size}, {"target", e.Target == f.Target},
	} {
		if !one.same {
			what = append(what, one.name)
		}
	}
	return what
}

// whyExpected gives the reason when only the content differs, and may.
func whyExpected(name string, what []string) string {
	if len(what) != 1 || what[0] != "content" {
		return ""
	}
	for _, e := range expected {
		if matched, err := path.Match("/"+e.pattern, name); err == nil && matched {
			return e.reason
		}
	}
	return ""
}
