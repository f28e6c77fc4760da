package boot

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"instantenv/init/internal/inittest"
	"instantenv/init/internal/supervisor"
)

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
