package kmsg

import (
	"errors"
	"testing"
	"time"
)

// FuzzRecords feeds the kernel's log: every read ends it or goes on, and a record is of its text's first line.
func FuzzRecords(f *testing.F) {
	f.Add("6,339,5140900,-;Run /sbin/init as init process\n KEY=value\n", "7,340,5150000,-;"+clockWords+"\n")
	f.Add("6,1,9223372036854775807,-;a", ",,,;")
	f.Add("", "\x00")
	f.Fuzz(func(t *testing.T, first, second string) {
		end := errors.New("end")
		lines := []string{first, second}
		read := func(buffer []byte) (int, error) {
			if len(lines) == 0 {
				return 0, end
			}
			line := lines[0]
			lines = lines[1:]
			return copy(buffer, line), nil
		}
		visited := 0
		err := Each(read, func(record Record) bool {
			visited++
			for _, c := range record.Text {
				if c == '\n' {
					t.Errorf("a text of two lines: %q", record.Text)
				}
			}
			return true
		})
		if err == nil || visited > 2 {
			t.Errorf("%d records, %v", visited, err)
		}
		lines = []string{first, second}
		if _, err := findHandoff(time.Second, read); err != nil && lines == nil {
			t.Error(err)
		}
	})
}
