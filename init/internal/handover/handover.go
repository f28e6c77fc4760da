package handover

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"instantenv/init/internal/atomicfile"
	"instantenv/init/internal/json"
	"instantenv/init/internal/sshkey"
)

// Limits of a request, in bytes. instant_env/launch/hand_over.py allows no longer line, and 128 characters in a lease.
const (
	lineMost  = 16 << 10
	leaseMost = 4 * 128
)

// Codes of a refusal. After the first four nothing has changed.
const (
	codeHandedOut = "handed-out"
	codeRequest   = "request"
	codeKey       = "key"
	codeMark      = "mark"
	codeKeys      = "keys"
	codeSessions  = "sessions"
)

// A Machine is what is handed over.
type Machine struct {
	Mark        string // the mark's file
	ReplaceKeys func(key sshkey.PublicKey) error
	EndSessions func() (ended int, err error)
	Flush       func()
}

// A refusal is the answer to a hand-over that did not happen, or not whole.
type refusal struct{ code, lease, detail string }

func refuse(code string, err error) *refusal { return &refusal{code: code, detail: err.Error()} }

// Serve says that it is ready, reads one request, and answers it; the manual (init/doc.go) has the lines. A caller that
// leaves without a request changes nothing. The status is for the shell.
func (m Machine) Serve(stdin io.Reader, stdout io.Writer) (status int) {
	directory, refused := m.open()
	if refused == nil {
		defer directory.Close()
		say(stdout, `{"version":1,"ready":true}`)
		line, whole := readLine(stdin)
		if !whole && len(line) == 0 {
			return 0
		}
		var ended int
		if ended, refused = m.handOver(directory, line, whole); refused == nil {
			say(stdout, `{"ok":true,"ended_sessions":`+decimal(ended)+`}`)
		}
	}
	if refused != nil {
		answer := json.AppendText([]byte(`{"ok":false,"code":`), refused.code)
		answer = json.AppendText(append(answer, `,"lease":`...), refused.lease)
		answer = json.AppendText(append(answer, `,"detail":`...), refused.detail)
		say(stdout, string(answer)+"}")
		status = 1
	}
	m.Flush() // after the answer, which it would hold up
	return status
}

// open makes the mark's directory, which also serves as a lock, and refuses at once what was handed out before.
func (m Machine) open() (*os.File, *refusal) {
	path := filepath.Dir(m.Mark)
	if err := os.MkdirAll(path, 0o755); err != nil {
		return nil, refuse(codeMark, err)
	}
	directory, err := os.Open(path)
	if err != nil {
		return nil, refuse(codeMark, err)
	}
	if refused := m.refuseHandedOut(); refused != nil {
		directory.Close()
		return nil, refused
	}
	return directory, nil
}

func (m Machine) refuseHandedOut() *refusal {
	if mark, handedOut := Read(m.Mark); handedOut {
		return &refusal{code: codeHandedOut, lease: mark.Lease}
	}
	return nil
}

// handOver is the one step: of two that come at the same time, one finds the mark of the other.
func (m Machine) handOver(directory *os.File, line []byte, whole bool) (ended int, refused *refusal) {
	key, refused := parseRequest(line, whole)
	if refused != nil {
		return 0, refused
	}
	if err := syscall.Flock(int(directory.Fd()), syscall.LOCK_EX); err != nil {
		return 0, refuse(codeMark, err)
	}
	if refused := m.refuseHandedOut(); refused != nil {
		return 0, refused
	}
	// The request is the mark. All may read it: login-keys runs as nobody.
	owner := atomicfile.Owner{UID: os.Geteuid(), GID: os.Getegid()} // root, but in tests
	err := atomicfile.WriteUnsynced(atomicfile.File{Path: m.Mark, Data: line, Mode: 0o644, Owner: owner})
	if err != nil {
		return 0, refuse(codeMark, err)
	}
	if err := m.ReplaceKeys(key); err != nil {
		return 0, refuse(codeKeys, err)
	}
	if ended, err = m.EndSessions(); err != nil {
		return 0, refuse(codeSessions, err)
	}
	return ended, nil
}

// parseRequest returns the lessee's key.
func parseRequest(line []byte, whole bool) (key sshkey.PublicKey, refused *refusal) {
	if !whole {
		return key, &refusal{code: codeRequest, detail: "not one line of at most 16 KiB"}
	}
	document, err := json.Parse(line)
	if err != nil {
		return key, refuse(codeRequest, err)
	}
	fields, _ := document.(map[string]any)
	var mark Mark
	mark.read(fields)
	replaces, isText := fields["replaces"].(string)
	broken := ""
	switch {
	case fields["version"] != 1.0:
		broken = "version is not 1"
	case mark.Lease == "" || len(mark.Lease) > leaseMost || strings.ContainsFunc(mark.Lease, isControl):
		broken = "lease is not 1 to 512 bytes without control characters"
	case mark.ExpiresAt.IsZero():
		broken = "expires_at is not a time like 2026-11-21T18:00:00Z"
	case !isText || replaces != "" && mark.Replaces.IsZero():
		broken = "replaces is neither empty nor a time"
	}
	if broken != "" {
		return key, &refusal{code: codeRequest, detail: broken}
	}
	text, _ := fields["public_key"].(string)
	if key, err = sshkey.ParsePublicKey(text); err != nil {
		return key, refuse(codeKey, err)
	}
	return key, nil
}

func isControl(c rune) bool { return c < ' ' || c == 0x7f }

// readLine returns a line without its end; it is not whole at the end of the input, and when it is too long.
func readLine(from io.Reader) (line []byte, whole bool) {
	buffer := make([]byte, lineMost+1)
	for len(line) <= lineMost {
		n, err := from.Read(buffer[len(line):])
		line = buffer[:len(line)+n]
		if n > 0 && line[len(line)-1] == '\n' {
			return line[:len(line)-1], true
		}
		if err != nil {
			break
		}
	}
	return line, false
}

// say writes a line. A caller that has left changes nothing: the mark is set, or it is not.
func say(to io.Writer, line string) { _, _ = to.Write([]byte(line + "\n")) }
