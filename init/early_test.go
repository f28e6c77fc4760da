package main

import (
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"instantenv/init/internal/config"
	"instantenv/init/internal/inittest"
	"instantenv/init/internal/mount"
	"instantenv/init/internal/supervisor"
)

func TestEarlyWordsAreThoseOfALaterStart(t *testing.T) {
	var arguments []string
	for _, word := range earlyWords[7:12] { // as early_*.s count them
		text, whole := strings.CutSuffix(word, "\x00")
		if !whole || strings.Contains(text, "\x00") {
			t.Errorf("%q is not a word of C", word)
		}
		arguments = append(arguments, text)
	}
	for i, word := range []string{mount.Table[0].Kind, mount.Table[0].Target, mount.Table[2].Kind, mount.Table[2].Target, mount.Table[2].Options} {
		if earlyWords[i] != word+"\x00" {
			t.Errorf("mounts %q, not %q", earlyWords[i], word)
		}
	}
	if want := serverArguments(config.DefaultSSHD); !slices.Equal(arguments, want) {
		t.Errorf("got %q, want %q", arguments, want)
	}
	if len(arguments) >= len(earlyArguments) {
		t.Error("no room for the end of the arguments")
	}
}

func TestAnEarlyServerThatIsNotWantedEnds(t *testing.T) {
	reader, writer, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	process, err := os.StartProcess("/bin/sleep", []string{"sleep", "1000"}, &os.ProcAttr{Files: []*os.File{nil, writer, writer}})
	if err != nil {
		t.Fatal(err)
	}
	writer.Close()
	path := inittest.Write(t, filepath.Join(t.TempDir(), "file"), "")
	lease, err := takeLease(path)
	if err != nil {
		t.Skipf("no leases here: %v", err)
	}
	processes := supervisor.NewReaper()
	server := &earlyServer{Adopted: supervisor.Adopted{Child: processes.Adopt(process.Pid), Output: reader}, lease: lease}
	go func() {
		for processes.Reap() {
			time.Sleep(time.Millisecond)
		}
	}()
	if err := server.end(processes); !strings.Contains(err.Error(), "not wanted: signal: killed") {
		t.Error(err)
	}
	if _, err := io.ReadAll(server.Output); err == nil {
		t.Error("its output is still open")
	}
	again, err := takeLease(path)
	if err != nil {
		t.Errorf("its lease is still there: %v", err)
	}
	again.release()
}
