package phases

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// A file is what a reader with a JSON library sees.
type file struct {
	Version int
	Clock   string
	Phases  []struct {
		Name, State, Reason string
		At                  int64 `json:"at_ms"`
	}
}

func read(t *testing.T, book Book) (content file) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(string(book), "phases.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &content); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return content
}

func TestSetKeepsTheOthersAndTheirOrder(t *testing.T) {
	book := Book(filepath.Join(t.TempDir(), "new"))
	for _, set := range [][3]string{
		{"mounted", Running, ""}, {"image", Running, ""}, {"mounted", Failed, "no \"disk\"\n\x1bé"}, {"image", Done, "v2"},
	} {
		if err := book.Set(set[0], set[1], set[2]); err != nil {
			t.Fatal(err)
		}
	}
	content := read(t, book)
	if content.Version != 1 || content.Clock != "CLOCK_BOOTTIME" || len(content.Phases) != 2 {
		t.Fatalf("%+v", content)
	}
	first, second := content.Phases[0], content.Phases[1]
	if first.Name != "mounted" || first.State != Failed || first.Reason != "no \"disk\"\n\x1bé" {
		t.Errorf("%+v", first)
	}
	if second.Name != "image" || second.State != Done || second.Reason != "v2" || second.At < first.At || first.At <= 0 {
		t.Errorf("%+v after %+v", second, first)
	}
	info, err := os.Stat(book.file())
	if err != nil || info.Mode().Perm() != 0o644 {
		t.Errorf("the login user reads it: %v, %v", info, err)
	}
}

func TestSetRefuses(t *testing.T) {
	book := Book(t.TempDir())
	for _, set := range [][3]string{
		{"", Done, ""}, {"Ready", Done, ""}, {"a b", Done, ""}, {"a/b", Done, ""}, {strings.Repeat("a", 65), Done, ""},
		{"ready", "", ""}, {"ready", "ended", ""}, {"ready", Failed, ""},
	} {
		if err := book.Set(set[0], set[1], set[2]); err == nil {
			t.Errorf("%q was taken", set)
		}
	}
	if _, err := os.Stat(book.file()); err == nil {
		t.Error("something was written")
	}
}

func TestALongReasonIsCut(t *testing.T) {
	book := Book(t.TempDir())
	if err := book.Set("ready", Failed, strings.Repeat("é", 5000)); err != nil {
		t.Fatal(err)
	}
	if got := len(read(t, book).Phases[0].Reason); got < 900 || got > reasonMost {
		t.Errorf("%d bytes", got)
	}
}

func TestAFileThatIsNotOursIsReplaced(t *testing.T) {
	for _, content := range []string{"", "{", `[]`, `{"phases": 1}`, `{"phases": []}`} {
		book := Book(t.TempDir())
		if err := os.WriteFile(book.file(), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := book.Set("ready", Done, ""); err != nil || len(read(t, book).Phases) != 1 {
			t.Errorf("%q: %v", content, err)
		}
	}
}

// Each writer has a lock of its own, as those of other processes have.
func TestWritersAtTheSameTimeLoseNothing(t *testing.T) {
	book := Book(t.TempDir())
	var writers sync.WaitGroup
	for i := range 20 {
		writers.Go(func() {
			for _, state := range []string{Running, Done} {
				if err := book.Set(fmt.Sprintf("phase-%d", i), state, ""); err != nil {
					t.Error(err)
				}
			}
		})
	}
	writers.Wait()
	phases := read(t, book).Phases
	for _, phase := range phases {
		if phase.State != Done {
			t.Errorf("%+v", phase)
		}
	}
	if len(phases) != 20 {
		t.Errorf("%d phases", len(phases))
	}
}

func TestAwait(t *testing.T) {
	book := Book(t.TempDir())
	if err := book.Await("ready", 0); err == nil || !strings.Contains(err.Error(), "ready is not begun after 0s") {
		t.Errorf("%v", err)
	}
	set := func(state, reason string) {
		if err := book.Set("ready", state, reason); err != nil {
			t.Fatal(err)
		}
	}
	set(Running, "")
	if err := book.Await("ready", 0); err == nil || !strings.Contains(err.Error(), "ready is running") {
		t.Errorf("%v", err)
	}
	set(Failed, "no space")
	if err := book.Await("ready", time.Hour); err == nil || err.Error() != "ready failed: no space" {
		t.Errorf("%v", err)
	}
	set(Running, "")
	done := make(chan error, 1)
	go func() { done <- book.Await("ready", time.Hour) }()
	set(Done, "")
	if err := <-done; err != nil {
		t.Error(err)
	}
}
