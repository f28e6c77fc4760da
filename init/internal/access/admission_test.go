package access

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"instantenv/init/internal/boottime"
	"instantenv/init/internal/imds"
	"instantenv/init/internal/inittest"
	"instantenv/init/internal/logging"
	"instantenv/init/internal/timeline"
	"instantenv/init/internal/userdata"
)

// shortly is a patience for tests in which what is waited for comes in the end.
var shortly = patience{
	first: 50 * time.Millisecond, next: 100 * time.Millisecond, others: inittest.LongEnough, pause: 10 * time.Millisecond,
}

func admissionTo(t *testing.T, client *imds.Client, journal io.Writer) *Admission {
	t.Helper()
	return &Admission{
		Client: client, User: someone(t), patience: shortly, held: filepath.Join(t.TempDir(), "keys"),
		marks: timeline.New(boottime.Now, true), log: &logging.Logger{Journal: journal},
	}
}

func markNames(t *testing.T, marks *timeline.Timeline) string {
	t.Helper()
	var document struct{ Marks []struct{ Name string } }
	if err := json.Unmarshal(marks.JSON(), &document); err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, mark := range document.Marks {
		names = append(names, mark.Name)
	}
	return strings.Join(names, " ")
}

func TestBeforeSSHD(t *testing.T) {
	wishes := func(key string) string { return `{"instant-env": {"ssh_keys": ["` + key + `"]}}` }
	for _, test := range []struct {
		name   string
		items  map[string][]string
		before string // in authorized_keys
		after  string
		marks  string
		said   string        // words of the log, in order, with | between
		silent string        // what the log does not say
		others time.Duration // for keys that are not needed and do not come
	}{
		{name: "a key", items: map[string][]string{keyPath: {inittest.Key + " launch\n"}}, after: inittest.Key + " launch\n", marks: "key_received key_written", silent: "waiting"},
		{
			name: "user data is not waited for when there is a key", items: map[string][]string{keyPath: {inittest.Key}, userdata.Path: {"503"}},
			after: inittest.Key + "\n", marks: "key_received key_written", silent: "user data",
		},
		{
			name: "busy, then garbage, then a key", items: map[string][]string{keyPath: {"503", "500", "<html>busy</html>", "ssh-ed25519 AAAA", inittest.Key}},
			after: inittest.Key + "\n", marks: "key_received key_written",
		},
		{
			name: "no answer for a while, and it says so", items: map[string][]string{
				"/latest/api/token": {"403", "403", "403", "403", "403", "403", "403", "403", "401", "404", "token"}, keyPath: {inittest.Key},
			},
			after: inittest.Key + "\n", marks: "key_received key_written", said: "waiting for the SSH key, | s so far: |turned off",
		},
		{
			name: "that there is no token yet does not say that there is no key", items: map[string][]string{
				"/latest/api/token": {"404", "404", "token"}, keyPath: {inittest.Key},
			},
			after: inittest.Key + "\n", marks: "key_received key_written", silent: "no SSH key",
		},
		{name: "none at launch, one in user data", items: map[string][]string{userdata.Path: {"503", wishes(inittest.Key)}}, after: inittest.Key + "\n", marks: "key_received key_written"},
		{name: "none anywhere", said: "nobody can log in"},
		{name: "none, and user data does not come", items: map[string][]string{userdata.Path: {"503"}}, said: "user data is not known yet", others: 100 * time.Millisecond},
		{
			name: "silence, and a key of an earlier start", items: map[string][]string{"/latest/api/token": {"503"}}, before: inittest.OtherKey + "\n",
			after: inittest.OtherKey + "\n", said: "waiting for the SSH key|the SSH keys of an earlier start stay",
			others: 100 * time.Millisecond,
		},
		{
			name: "an earlier key does not keep the new one out", items: map[string][]string{keyPath: {"503", "503", inittest.Key}}, before: inittest.OtherKey + "\n",
			after: inittest.OtherKey + "\n" + inittest.Key + "\n", marks: "key_received key_written", silent: "earlier",
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, client := inittest.Serve(t, test.items)
			var log bytes.Buffer
			a := admissionTo(t, client, &log)
			a.patience.others = cmp.Or(test.others, shortly.others)
			if test.before != "" {
				inittest.Write(t, a.User.keyFile(), test.before)
			}
			if err := a.BeforeSSHD(); err != nil {
				t.Error(err)
			}
			content, err := os.ReadFile(a.User.keyFile())
			if string(content) != test.after {
				t.Errorf("authorized_keys %q, %v; want %q", content, err, test.after)
			}
			if got := markNames(t, a.marks); got != test.marks {
				t.Errorf("marks %q, want %q", got, test.marks)
			}
			rest := log.String()
			for word := range strings.SplitSeq(test.said, "|") {
				_, after, found := strings.Cut(rest, word)
				if !found {
					t.Errorf("log %q has no %q", rest, word)
				}
				rest = after
			}
			if test.silent != "" && strings.Contains(log.String(), test.silent) {
				t.Errorf("log %q", log.String())
			}
		})
	}
}

// After a restart of a machine that was handed over neither the key of its launch nor one in user data or the metadata's list
// is let in beside the lessee's.
func TestAMachineThatWasHandedOverKeepsItsKeys(t *testing.T) {
	keys := map[string][]string{
		keyPath: {inittest.Key}, keysPath: {"0=launch"}, userdata.Path: {`{"instant-env": {"ssh_keys": ["` + inittest.Key + `"]}}`},
	}
	_, client := inittest.Serve(t, keys)
	var log bytes.Buffer
	a := admissionTo(t, client, &log)
	a.mark = inittest.Write(t, filepath.Join(t.TempDir(), "handed-out"), "")
	inittest.Write(t, a.User.keyFile(), inittest.OtherKey+"\n")
	if err := a.BeforeSSHD(); err != nil {
		t.Error(err)
	}
	a.AfterSSHD()
	a.AdmitParameter("", "", func(_ []string, stdout *os.File) error {
		_, err := stdout.WriteString(inittest.Key + "\n")
		return err
	})
	if got := inittest.Read(t, a.User.keyFile()); got != inittest.OtherKey+"\n" {
		t.Errorf("authorized_keys %q; log %q", got, log.String())
	}
	if _, err := os.Stat(a.held); !os.IsNotExist(err) {
		t.Errorf("keys are held in memory: %v", err)
	}
}

// What is waited for is reported after 5 s and every 30 s from then on, with the time so far.
func TestWaitingIsReported(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		w := New(nil, Account{}, nil, &logging.Logger{Journal: &log}).waitingFor("the SSH key")
		for second := range 70 {
			if got, want := w.tell(errors.New("busy")), time.Duration(second+1)*time.Second; got != want {
				t.Errorf("waited for %s, not %s", want, got)
			}
		}
		want := ""
		for _, seconds := range []string{"5", "35", "65"} {
			want += "instant-init: waiting for the SSH key, " + seconds + " s so far: busy\n"
		}
		if log.String() != want {
			t.Errorf("log %q", log.String())
		}
	})
}

// Where authorized_keys cannot be written, the keys are held where login-keys finds them.
func TestKeysAreHeldInMemory(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("the file belongs to root")
	}
	_, client := inittest.Serve(t, map[string][]string{keyPath: {inittest.Key}})
	var log, stdout bytes.Buffer
	a := admissionTo(t, client, &log)
	a.User.home = inittest.Write(t, filepath.Join(t.TempDir(), "home"), "a file, where a directory should be")
	if err := a.BeforeSSHD(); err != nil {
		t.Fatal(err)
	}
	if err := a.admit(inittest.Keys(t, inittest.OtherKey)); err != nil {
		t.Fatal(err)
	}
	if status := LoginKeys("admin", "admin", a.held, a.mark, client, &stdout, &log); status != 0 || stdout.String() != inittest.Key+"\n"+inittest.OtherKey+"\n" {
		t.Errorf("status %d, %q", status, stdout.String())
	}
	if !strings.Contains(log.String(), "is not a directory; they are in "+a.held) {
		t.Errorf("log %q", log.String())
	}
	a.held = filepath.Join(a.User.home, "impossible")
	if err := a.BeforeSSHD(); err == nil {
		t.Error("the key is nowhere, yet there is no error")
	}
}

func TestAfterSSHD(t *testing.T) {
	s, client := inittest.Serve(t, map[string][]string{
		userdata.Path:              {"503", `{"instant-env": {"ttl_s": 60, "ssh_keys": ["` + inittest.Key + ` wished"], "colour": "red"}}`},
		keysPath:                   {"0=one\n1=two\n../../x=y\n=z\n2=three\n3\n"},
		keysPath + "0/openssh-key": {inittest.Key + " zero"},
		keysPath + "1/openssh-key": {inittest.OtherKey + " one\n"},
		keysPath + "2/openssh-key": {"not a key"},
	})
	var log bytes.Buffer
	a := admissionTo(t, client, &log)
	data := a.AfterSSHD()
	if data.TTL != time.Minute {
		t.Errorf("user data %+v", data)
	}
	if got, want := inittest.Read(t, a.User.keyFile()), inittest.Key+" wished\n"+inittest.OtherKey+" one\n"; got != want {
		t.Errorf("authorized_keys %q, want %q", got, want)
	}
	if !strings.Contains(log.String(), `unknown field "colour"`) || !strings.Contains(log.String(), "SSH key 2: ") {
		t.Errorf("log %q", log.String())
	}
	if s.Count(keysPath+"3/openssh-key") != 0 || s.Count("/latest/meta-data/x") != 0 {
		t.Error("asked for what was not listed")
	}
}

// Whoever reads authorized_keys while keys are added sees a whole number of keys, and never fewer than before.
func TestNobodySeesHalfAKey(t *testing.T) {
	user := someone(t)
	key := func(i int) string {
		body := []byte(strings.TrimPrefix(inittest.Key, "ssh-ed25519 "))
		copy(body[len(body)-8:], fmt.Sprintf("%06d", i)) // the last two may be padding
		return "ssh-ed25519 " + string(body) + " number-" + fmt.Sprint(i)
	}
	if err := user.Authorize(inittest.Keys(t, key(0))); err != nil {
		t.Fatal(err)
	}
	const count, leastReads = 300, 10
	var reads atomic.Int32
	done := make(chan error, 1)
	go func() {
		for i := 1; i < count || reads.Load() < leastReads; i++ {
			if err := user.Authorize(inittest.Keys(t, key(i))); err != nil {
				done <- err
				return
			}
		}
		done <- nil
	}()
	for seen := 0; ; reads.Add(1) {
		content, err := os.ReadFile(user.keyFile())
		if err != nil {
			t.Fatal(err)
		}
		lines := strings.SplitAfter(string(content), "\n")
		if lines[len(lines)-1] != "" {
			t.Fatalf("half a line: %q", lines[len(lines)-1])
		}
		for i, line := range lines[:len(lines)-1] {
			if line != key(i)+"\n" {
				t.Fatalf("line %d: %q", i, line)
			}
		}
		if len(lines)-1 < seen {
			t.Fatalf("%d keys after %d", len(lines)-1, seen)
		}
		seen = len(lines) - 1
		select {
		case err := <-done:
			if err != nil {
				t.Fatal(err)
			}
			if entries, _ := os.ReadDir(filepath.Dir(user.keyFile())); len(entries) != 1 {
				t.Errorf("leftovers: %v", entries)
			}
			return
		default:
		}
	}
}
