// Package handover gives a machine of a pool to a lessee: a mark on its disk says to whom and until when, the lessee's key
// takes the place of every other, and whoever else is logged in is thrown out.
package handover

import (
	"os"
	"time"

	"instantenv/init/internal/instant"
	"instantenv/init/internal/json"
)

// File is the mark. It stays for the life of the disk: what has it was given to somebody.
const File = "/var/lib/instant-init/handed-out"

// A Mark is what the machine knows of its own hand-over. Replaces is the value that the tag of the time limit had until
// then; while the tag still has it, ExpiresAt is the machine's end. Times that are not known are zero.
type Mark struct {
	Lease               string
	ExpiresAt, Replaces time.Time
}

// HandedOut reports whether there is a mark, whatever is in it. Where that cannot be known, there is one.
func HandedOut(file string) bool {
	_, err := os.Lstat(file)
	return !os.IsNotExist(err)
}

// Read reports whether there is a mark, and what it says. One that a power failure has cut short says nothing.
func Read(file string) (mark Mark, handedOut bool) {
	if !HandedOut(file) {
		return mark, false
	}
	text, _ := os.ReadFile(file)
	document, _ := json.Parse(text)
	fields, _ := document.(map[string]any)
	mark.read(fields)
	return mark, true
}

func (m *Mark) read(fields map[string]any) {
	m.Lease, _ = fields["lease"].(string)
	m.ExpiresAt = timeIn(fields["expires_at"])
	m.Replaces = timeIn(fields["replaces"])
}

// timeIn is the zero time for what is no time of RFC 3339.
func timeIn(value any) time.Time {
	text, _ := value.(string)
	at, err := instant.ParseRFC3339(text)
	if err != nil {
		return time.Time{}
	}
	return at
}
