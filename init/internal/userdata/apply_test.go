package userdata

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"instantenv/init/internal/phases"
)

// phaseOf is the line of the file, as a shell would look for it.
func phaseOf(t *testing.T, book phases.Book) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(string(book), "phases.json"))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestApply(t *testing.T) {
	book, named := phases.Book(filepath.Join(t.TempDir(), "instant-env")), ""
	data := Data{Hostname: "build-7", Settings: map[string]string{"image": "ghcr.io/team/app", "none": "", "odd": `$(id) "\`}}
	if err := data.Apply(book, func(hostname string) error { named = hostname; return nil }); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"image": "ghcr.io/team/app\n", "none": "\n", "odd": "$(id) \"\\\n"} {
		path := filepath.Join(string(book), "settings", name)
		content, err := os.ReadFile(path)
		if err != nil || string(content) != want {
			t.Errorf("%s: %q, %v", name, content, err)
		}
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", name, info, err)
		}
	}
	for directory, mode := range map[string]os.FileMode{string(book): 0o755, string(book) + "/settings": 0o700} {
		if info, err := os.Stat(directory); err != nil || info.Mode().Perm() != mode {
			t.Errorf("%s: %v, %v", directory, info, err)
		}
	}
	if text := phaseOf(t, book); named != "build-7" || !strings.Contains(text, `"name":"user-data","state":"done"`) {
		t.Errorf("%q, %s", named, text)
	}
}

func TestApplyRecordsWhatCouldNotBeUsed(t *testing.T) {
	book := phases.Book(t.TempDir())
	_, complaints := Parse([]byte(`{"instant-env": {"hostname": "a b", "settings": {"x": "\n"}}}`))
	data := Data{Hostname: "a", Complaints: complaints}
	broken := errors.New("not permitted")
	if err := data.Apply(book, func(string) error { return broken }); !errors.Is(err, broken) {
		t.Errorf("%v", err)
	}
	text := phaseOf(t, book)
	for _, words := range []string{`"state":"failed"`, "instant-env.hostname: not a host", "instant-env.settings: ", "host name: not permitted"} {
		if !strings.Contains(text, words) {
			t.Errorf("%s lacks %s", text, words)
		}
	}
}

func TestNothingSaidIsDoneAsWell(t *testing.T) {
	book := phases.Book(t.TempDir())
	if err := (Data{}).Apply(book, nil); err != nil || !strings.Contains(phaseOf(t, book), `"user-data","state":"done"`) {
		t.Errorf("%v", err)
	}
}
