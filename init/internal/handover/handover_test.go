package handover

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"instantenv/init/internal/inittest"
	"instantenv/init/internal/sshkey"
)

// A place is a machine whose files are in a temporary directory, and what was done to it.
type place struct {
	Machine
	mutex sync.Mutex
	done  []string
}

func newPlace(t *testing.T) *place {
	p := &place{}
	note := func(what string) {
		p.mutex.Lock()
		defer p.mutex.Unlock()
		p.done = append(p.done, what)
	}
	p.Machine = Machine{
		Mark:        filepath.Join(t.TempDir(), "lib", "handed-out"),
		ReplaceKeys: func(key sshkey.PublicKey) error { note("key " + key.String()); return nil },
		EndSessions: func() (int, error) { note("sessions"); return 3, nil },
		Flush:       func() { note("flush") },
	}
	return p
}

func (p *place) serve(input string) (lines []string, status int) {
	var output bytes.Buffer
	status = p.Serve(strings.NewReader(input), &output)
	return strings.Split(strings.TrimSuffix(output.String(), "\n"), "\n"), status
}

func request(lease, key string) string {
	return `{"version": 1, "lease": "` + lease + `", "public_key": "` + key + `", "expires_at": "2026-12-01T12:00:00Z", ` +
		`"replaces": "2026-12-02T00:00:00Z"}` + "\n"
}

// answers are the lines of testdata/answers.json, which tests/unit/launch/test_hand_over.py reads, too.
func answers(t *testing.T) map[string]string {
	t.Helper()
	var lines map[string]string
	if err := json.Unmarshal([]byte(inittest.Read(t, "testdata/answers.json")), &lines); err != nil {
		t.Fatal(err)
	}
	return lines
}

func TestHandOver(t *testing.T) {
	p, said := newPlace(t), answers(t)
	lines, status := p.serve(request("lease-1", inittest.Key+" a comment"))
	if status != 0 || len(lines) != 2 || lines[0] != said["ready"] || lines[1] != said["ok"] {
		t.Fatalf("status %d, %q", status, lines)
	}
	if got := strings.Join(p.done, "; "); got != "key "+inittest.Key+" a comment; sessions; flush" {
		t.Errorf("done: %s", got)
	}
	mark, handedOut := Read(p.Mark)
	want := Mark{
		"lease-1", time.Date(2026, 12, 1, 12, 0, 0, 0, time.UTC), time.Date(2026, 12, 2, 0, 0, 0, 0, time.UTC),
	}
	if !handedOut || mark != want {
		t.Errorf("mark %+v, %v", mark, handedOut)
	}
	if info, err := os.Stat(p.Mark); err != nil || info.Mode().Perm() != 0o644 {
		t.Errorf("%v, %v: nobody's login-keys has to see it", info, err)
	}
}

func TestTheSecondHandOverIsRefused(t *testing.T) {
	p := newPlace(t)
	p.serve(request(`lease \"0\"`, inittest.Key))
	p.done = nil
	// At once, and before it says that it is ready.
	lines, status := p.serve(request("lease-1", inittest.OtherKey))
	if status != 1 || len(lines) != 1 || lines[0] != answers(t)["handed-out"] || strings.Join(p.done, "") != "flush" {
		t.Fatalf("status %d, %q, done %q", status, lines, p.done)
	}
}

// pausing is a standard input that sends its line when it is told to, and closes waiting when it is first asked for it.
type pausing struct {
	waiting, send chan struct{}
	line          io.Reader
	once          sync.Once
}

func (p *pausing) Read(into []byte) (int, error) {
	p.once.Do(func() { close(p.waiting) })
	<-p.send
	return p.line.Read(into)
}

func TestOfManyThatAreParkedOneWins(t *testing.T) {
	p := newPlace(t)
	const parked = 20
	send := make(chan struct{})
	outputs := make([]bytes.Buffer, parked)
	var done sync.WaitGroup
	for i := range parked {
		input := &pausing{waiting: make(chan struct{}), send: send, line: strings.NewReader(request("lease-"+decimal(i), inittest.Key))}
		done.Go(func() { p.Serve(input, &outputs[i]) })
		<-input.waiting
	}
	close(send)
	done.Wait()
	mark, _ := Read(p.Mark)
	won := 0
	for i := range parked {
		switch said := outputs[i].String(); {
		case strings.Contains(said, `"ok":true`):
			won++
			if mark.Lease != "lease-"+decimal(i) {
				t.Errorf("the mark is of %s, %d was told that it won", mark.Lease, i)
			}
		case !strings.Contains(said, `"code":"handed-out","lease":"`+mark.Lease+`"`):
			t.Errorf("%d: %s", i, said)
		}
	}
	if won != 1 {
		t.Errorf("%d won", won)
	}
}

func TestACallerThatLeavesChangesNothing(t *testing.T) {
	p := newPlace(t)
	if lines, status := p.serve(""); status != 0 || len(lines) != 1 {
		t.Errorf("status %d, %q", status, lines)
	}
	if HandedOut(p.Mark) || len(p.done) != 0 {
		t.Errorf("done %q", p.done)
	}
}

func TestRefusals(t *testing.T) {
	said := answers(t)
	whole := request("lease-1", inittest.Key)
	for _, test := range []struct{ name, input, code string }{
		{"half a line", strings.TrimSuffix(whole, "\n"), codeRequest},
		{"half a document", "{\n", codeRequest},
		{"a list", "[]\n", codeRequest},
		{"too long", strings.Repeat(" ", lineMost) + whole, codeRequest},
		{"another version", strings.Replace(whole, "1,", "2,", 1), codeRequest},
		{"no lease", request("", inittest.Key), codeRequest},
		{"a long lease", request(strings.Repeat("x", leaseMost+1), inittest.Key), codeRequest},
		{"a control character in the lease", request(`a\u0007`, inittest.Key), codeRequest},
		{"no end", strings.Replace(whole, "expires_at", "expires", 1), codeRequest},
		{"an end that is no time", strings.Replace(whole, "2026-12-01T", "tomorrow ", 1), codeRequest},
		{"nothing replaced", strings.Replace(whole, "replaces", "replaced", 1), codeRequest},
		{"what is replaced is no time", strings.Replace(whole, "2026-12-02T", "tomorrow ", 1), codeRequest},
		{"no key", request("lease-1", "ssh-ed25519"), codeKey},
		{"an option before the key", request("lease-1", `command=\"id\" `+inittest.Key), codeKey},
		{"two keys", request("lease-1", inittest.Key+`\n`+inittest.OtherKey), codeKey},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := newPlace(t)
			lines, status := p.serve(test.input)
			if status != 1 || len(lines) != 2 || !strings.HasPrefix(lines[1], `{"ok":false,"code":"`+test.code+`",`) {
				t.Errorf("status %d, %q", status, lines)
			}
			if test.input == "{\n" && lines[1] != said["request"] || test.name == "no key" && lines[1] != said["key"] {
				t.Errorf("%q is not in testdata/answers.json", lines[1])
			}
			if HandedOut(p.Mark) || strings.Join(p.done, "") != "flush" {
				t.Errorf("done %q", p.done)
			}
		})
	}
}

func TestWithoutAPlaceForTheMarkItIsNotReady(t *testing.T) {
	p := newPlace(t)
	directory := filepath.Dir(p.Mark)
	inittest.Write(t, directory, "a file")
	lines, status := p.serve(request("lease-1", inittest.Key))
	want := strings.Replace(answers(t)["mark"], "DIRECTORY", "mkdir "+directory, 1)
	if status != 1 || len(lines) != 1 || lines[0] != want || strings.Join(p.done, "") != "flush" {
		t.Errorf("status %d, %q, want %q; done %q", status, lines, want, p.done)
	}
}

func TestFailuresAfterTheMark(t *testing.T) {
	said := answers(t)
	for code, change := range map[string]func(m *Machine){
		codeKeys:     func(m *Machine) { m.ReplaceKeys = func(sshkey.PublicKey) error { return errors.New("disk full") } },
		codeSessions: func(m *Machine) { m.EndSessions = func() (int, error) { return 1, os.ErrPermission } },
	} {
		p := newPlace(t)
		change(&p.Machine)
		lines, status := p.serve(request("lease-1", inittest.Key))
		want := strings.Replace(said[code], "operation not permitted", os.ErrPermission.Error(), 1)
		if status != 1 || lines[1] != want {
			t.Errorf("%s: status %d, %q, want %q", code, status, lines, want)
		}
		if _, again := p.serve(request("lease-2", inittest.Key)); again != 1 {
			t.Errorf("%s: handed out twice", code)
		}
	}
}

func TestAMarkThatWasCutShortStillMarks(t *testing.T) {
	file := inittest.Write(t, filepath.Join(t.TempDir(), "handed-out"), "")
	if mark, handedOut := Read(file); !handedOut || mark != (Mark{}) {
		t.Errorf("%+v, %v", mark, handedOut)
	}
	if mark, handedOut := Read(file + ".none"); handedOut || mark != (Mark{}) {
		t.Errorf("%+v, %v", mark, handedOut)
	}
}

// A requestCase is a request that instant_env/launch/hand_over.py wrote, and what it says.
type requestCase struct {
	Name, Line, Lease, Key string
	ExpiresAt, Replaces    string
}

// TestRequestsOfPython reads the cases that tests/unit/launch/test_hand_over.py writes.
func TestRequestsOfPython(t *testing.T) {
	var cases []requestCase
	if err := json.Unmarshal([]byte(inittest.Read(t, "testdata/python.json")), &cases); err != nil {
		t.Fatal(err)
	}
	for _, c := range cases {
		t.Run(c.Name, func(t *testing.T) {
			p := newPlace(t)
			if lines, status := p.serve(c.Line); status != 0 {
				t.Fatalf("%q", lines)
			}
			mark, _ := Read(p.Mark)
			if mark.Lease != c.Lease || p.done[0] != "key "+c.Key || spell(mark.ExpiresAt) != c.ExpiresAt || spell(mark.Replaces) != c.Replaces {
				t.Errorf("%q says %+v, %q; Python meant %+v", c.Line, mark, p.done, c)
			}
		})
	}
	if len(cases) == 0 {
		t.Error("no cases")
	}
}

func spell(at time.Time) string {
	if at.IsZero() {
		return ""
	}
	return at.Format(time.RFC3339)
}

func FuzzServe(f *testing.F) {
	f.Add([]byte(request("lease-1", inittest.Key)))
	f.Add([]byte("{}\n"))
	f.Add([]byte(`{"version":1,"lease":["x"],"public_key":7,"expires_at":null,"replaces":{}}` + "\n"))
	f.Fuzz(func(t *testing.T, input []byte) {
		p := newPlace(t)
		var output bytes.Buffer
		status := p.Serve(bytes.NewReader(input), &output)
		for line := range strings.Lines(output.String()) {
			if !json.Valid([]byte(line)) {
				t.Errorf("%q", line)
			}
		}
		if marked := HandedOut(p.Mark); marked != strings.Contains(output.String(), `"ok":true`) || marked && status != 0 {
			t.Errorf("status %d, marked %v: %s", status, marked, output.String())
		}
	})
}
