package runner

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"instantenv/internal/containerhost/config"
)

// A StateFile remembers the tag that an update chose, so that a restart of the machine runs it again.
type StateFile string

// StatePath is the machine's.
const StatePath StateFile = "/var/lib/container-host/state.json"

// A state holds beside an updated tag what was declared then: a launch that declares something else comes later, and wins.
type state struct {
	Tag           string   `json:"tag"`
	DeclaredTag   string   `json:"declared_tag"`
	DeclaredImage string   `json:"declared_image"`
	Tried         []string `json:"tried"` // tags that were rolled out, well or not, the latest last
}

func (f StateFile) read() (state, error) {
	var saved state
	text, err := os.ReadFile(string(f))
	if errors.Is(err, fs.ErrNotExist) {
		return saved, nil
	}
	if err == nil {
		err = json.Unmarshal(text, &saved)
	}
	if err != nil {
		return saved, fmt.Errorf("%s: %w; remove it to run the declared tag", f, err)
	}
	return saved, nil
}

func (f StateFile) write(saved state) error {
	text, err := json.Marshal(saved)
	if err != nil {
		return err
	}
	return WriteFile(string(f), append(text, '\n'), 0o600)
}

// Tag returns the tag to run: the last update's, unless image and user data declare something else by now.
func (f StateFile) Tag(settings config.Config) (string, error) {
	saved, err := f.read()
	if err != nil || saved.DeclaredTag != settings.Tag || saved.DeclaredImage != settings.Image ||
		!config.IsTag(saved.Tag) {
		return settings.Tag, err
	}
	return saved.Tag, nil
}

// Keep remembers the tag that runs from now on.
func (f StateFile) Keep(settings config.Config, tag string) error {
	saved, err := f.read()
	if err != nil {
		return err
	}
	saved.Tag, saved.DeclaredTag, saved.DeclaredImage = tag, settings.Tag, settings.Image
	return f.write(saved)
}

// Tried adds the tags that are in use to those that were rolled out, and returns the ones that may go: all that are there
// but these and KeepImages others.
func (f StateFile) Tried(settings config.Config, needed []string, isThere func(tag string) bool) ([]string, error) {
	saved, err := f.read()
	if err != nil {
		return nil, err
	}
	others := slices.DeleteFunc(saved.Tried, func(tag string) bool {
		return slices.Contains(needed, tag) || !isThere(tag)
	})
	excess := max(len(others)-settings.KeepImages, 0)
	obsolete := slices.Clone(others[:excess])
	saved.Tried = others[excess:]
	for _, tag := range needed {
		if tag != "" {
			saved.Tried = append(saved.Tried, tag)
		}
	}
	return obsolete, f.write(saved)
}

// WriteFile replaces a file as a whole, on disk before it returns.
func WriteFile(path string, content []byte, mode fs.FileMode) error {
	file, err := os.CreateTemp(filepath.Dir(path), ".new-")
	if err != nil {
		return err
	}
	defer os.Remove(file.Name()) // it has another name when all went well
	_, err = file.Write(content)
	err = errors.Join(err, file.Chmod(mode), file.Sync(), file.Close())
	if err != nil {
		return err
	}
	return os.Rename(file.Name(), path)
}
