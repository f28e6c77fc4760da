package swap

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"instantenv/init/internal/inittest"
)

func TestPrepare(t *testing.T) {
	path := filepath.Join(t.TempDir(), "partition")
	create := func(content string) {
		inittest.Write(t, path, content)
		if err := os.Truncate(path, 8<<20); err != nil {
			t.Fatal(err)
		}
	}
	create("")
	if err := Prepare(path); err != nil {
		t.Fatal(err)
	}
	made := inittest.Read(t, path)
	if err := Prepare(path); err != nil || inittest.Read(t, path) != made {
		t.Errorf("swap is not left alone: %v", err)
	}
	page := os.Getpagesize()
	if got := binary.NativeEndian.Uint32([]byte(made[1028:])); int(got) != 8<<20/page-1 {
		t.Errorf("last page %d", got)
	}
	if made[page-10:page] != signature {
		t.Error("no signature")
	}
	create(strings.Repeat("data", 1000))
	if err := Prepare(path); err == nil || !strings.HasPrefix(inittest.Read(t, path), "datadata") {
		t.Errorf("what is on the device counts for nothing: %v", err)
	}
}
