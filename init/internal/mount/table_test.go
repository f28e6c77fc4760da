package mount

import (
	"path/filepath"
	"testing"
)

func TestMountTableIsInOrder(t *testing.T) {
	seen := map[string]bool{}
	for _, entry := range Table {
		if parent := filepath.Dir(entry.Target); parent != "/" && parent != "/sys/fs" && !seen[parent] {
			t.Errorf("%s comes before %s", entry.Target, parent)
		}
		seen[entry.Target] = true
	}
}
