package supervisor

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"instantenv/init/internal/boottime"
	"instantenv/init/internal/inittest"
	"instantenv/init/internal/logging"
	"instantenv/init/internal/task"
	"instantenv/init/internal/timeline"
)

// newSupervisor has a reaper that reaps and a console to look at; no cgroups, and nobody can log in. Services have time to
// end, however slow the machine is.
func newSupervisor(t *testing.T) (*Supervisor, *inittest.Buffer) {
	t.Helper()
	t.TempDir() // the first call's cleanup removes all of them: after the one below, when nothing writes logs any more
	console := &inittest.Buffer{}
	log := &logging.Logger{Console: console}
	v := New(Config{
		Log: log, Processes: NewReaper(), IsServing: func() bool { return false },
		Tasks: &task.Group{
			Log: log, Marks: timeline.New(boottime.Now, true), Fatal: func(cause error) { log.Consolef("fatal: %v", cause) },
		},
	})
	v.grace = inittest.LongEnough
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended) // wait4 would take the children of the next test
		for {
			select {
			case <-done:
				return
			case <-time.After(time.Millisecond):
				v.Processes.Reap()
			}
		}
	}()
	t.Cleanup(func() {
		v.Processes.Close()
		// Again and again: one that is being started when the reaper closes is not yet known to its service.
		inittest.WaitFor(t, "all processes to end", func() bool {
			v.StopServices(time.Now())
			return !v.Processes.Reap()
		})
		v.mutex.Lock()
		defer v.mutex.Unlock()
		for _, s := range v.services {
			awaitLog(t, s)
		}
		close(done)
		<-ended
	})
	return v, console
}

// awaitLog returns when all that the service's process printed is in its log.
func awaitLog(t *testing.T, s *Supervised) {
	t.Helper()
	s.mutex.Lock()
	defer s.mutex.Unlock()
	select {
	case <-s.main.read:
	case <-time.After(inittest.LongEnough):
		t.Errorf("the output of %s is still open", s.Name)
	}
}

func shell(t *testing.T, name, script string) *Supervised {
	t.Helper()
	log := NewServiceLog(name, nil)
	log.path = filepath.Join(t.TempDir(), name+".log")
	return &Supervised{Service: Service{Name: name, Argv: []string{"/bin/sh", "-c", script}}, Log: log}
}

// runUntil supervises a service and returns when it runs, a shutdown would stop it, and it has printed this line.
func runUntil(t *testing.T, v *Supervisor, s *Supervised, line string) {
	t.Helper()
	running := make(chan struct{})
	v.Tasks.Spawn(s.Name, func() error { return v.Supervise(s, func() { close(running) }) })
	<-running
	inittest.WaitFor(t, s.Name+" to print "+line, func() bool { return s.Log.last() == line })
}

func TestReaper(t *testing.T) {
	r := NewReaper()
	process, err := r.start([]string{"/bin/sh", "-c", "exit 7"}, nil, []uintptr{0, 1, 2}, nil)
	if err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(inittest.LongEnough); r.Reap() && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	select {
	case status := <-process.Exit:
		if Describe(status) != "status 7" {
			t.Errorf("ended with %s", Describe(status))
		}
	default:
		t.Error("nobody was told of the end")
	}
	if _, err := r.start([]string{"/does/not/exist"}, nil, nil, nil); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a missing program: %v", err)
	}
	r.Close()
	if _, err := r.start([]string{"/bin/true"}, nil, nil, nil); !errors.Is(err, errShuttingDown) || !r.IsClosed() {
		t.Errorf("after close: %v", err)
	}
}

func TestAServiceIsStartedAgainLaterEachTime(t *testing.T) {
	v, console := newSupervisor(t)
	s := shell(t, "flaky", "echo I give up; exit 3")
	starts := 0
	v.Tasks.Spawn("flaky", func() error { return v.Supervise(s, func() { starts++ }) })
	inittest.WaitFor(t, "the fourth start", func() bool { return strings.Contains(console.String(), "again in 400ms") })
	for _, pause := range []string{"100ms", "200ms", "400ms"} {
		line := "flaky ended: status 3; starting it again in " + pause + "; its last words: I give up"
		if strings.Count(console.String(), line) != 1 {
			t.Errorf("no %q in\n%s", line, console)
		}
	}
	if starts != 1 {
		t.Errorf("told of its first start %d times", starts)
	}
}

func TestStartAgainWithOtherArguments(t *testing.T) {
	v, console := newSupervisor(t)
	s := shell(t, "told", `echo "got $*"; while :; do sleep 0.01; done`)
	runUntil(t, v, s, "got ")
	v.StartAgain(s, []string{"name", "-h", "file"}) // the first one is the shell's name for itself
	inittest.WaitFor(t, "its second start", func() bool { return strings.HasSuffix(s.Log.last(), "got -h file") })
	if !strings.Contains(console.String(), "told ended: signal: killed; starting it again in 100ms") {
		t.Errorf("the console was told\n%s", console)
	}
}

func TestRestartsBecomeQuiet(t *testing.T) {
	v, console := newSupervisor(t)
	s := shell(t, "sad", "")
	for _, pause := range []time.Duration{time.Second, restartPauseMost, restartPauseMost, restartPauseMost} {
		v.tellRestart(s, "ended", pause)
	}
	if got := strings.Count(console.String(), "\n"); got != 2 || !strings.Contains(console.String(), "from now on") {
		t.Errorf("%d lines:\n%s", got, console)
	}
}

func TestRestartPolicy(t *testing.T) {
	v, console := newSupervisor(t)
	for i, test := range []struct {
		restart string
		status  int
		again   bool
	}{
		{restartAlways, 0, true}, {restartOnFailure, 0, false}, {restartOnFailure, 1, true}, {restartNot, 1, false},
	} {
		name := fmt.Sprintf("job%d", i)
		s := shell(t, name, fmt.Sprintf("exit %d", test.status))
		s.Restart = test.restart
		done := v.Tasks.Async(name, func() error { return v.Supervise(s, func() {}) })
		if test.again {
			inittest.WaitFor(t, "a restart", func() bool { return strings.Contains(console.String(), name+" ended") })
			continue
		}
		select {
		case err := <-done:
			if err != nil || strings.Contains(console.String(), name) {
				t.Errorf("%v: %v, %s", test, err, console)
			}
		case <-time.After(inittest.LongEnough):
			t.Errorf("%v: not done", test)
		}
	}
}

func TestARequiredProgramThatCannotRun(t *testing.T) {
	v, _ := newSupervisor(t)
	s := shell(t, "gone", "")
	s.Argv, s.Required = []string{"/does/not/exist"}, true
	if err := v.Supervise(s, func() {}); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("got %v", err)
	}
	for err, want := range map[error]bool{syscall.EAGAIN: true, syscall.ENOENT: false, os.ErrPermission: false} {
		if transient(err) != want {
			t.Errorf("%v", err)
		}
	}
}

func TestServicesStopInReverseOrder(t *testing.T) {
	v, _ := newSupervisor(t)
	order := filepath.Join(t.TempDir(), "order")
	for _, name := range []string{"first", "second", "third"} {
		s := shell(t, name, `trap 'echo `+name+` >>`+order+`; exit 0' TERM; echo up; while :; do sleep 0.01; done`)
		runUntil(t, v, s, "up")
	}
	v.Processes.Close()
	v.StopServices(time.Now().Add(inittest.LongEnough))
	if got := inittest.Read(t, order); got != "third\nsecond\nfirst\n" {
		t.Errorf("stopped in the order %q", got)
	}
}

func TestAStubbornServiceIsKilled(t *testing.T) {
	for name, test := range map[string]struct{ grace, limit time.Duration }{
		"after its own time":       {100 * time.Millisecond, inittest.LongEnough},
		"after the time of all":    {inittest.LongEnough, 100 * time.Millisecond},
		"when no time is left now": {inittest.LongEnough, -time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			v, console := newSupervisor(t)
			v.grace = test.grace
			s := shell(t, "stubborn", `trap '' TERM; echo up; while :; do sleep 0.01; done`)
			runUntil(t, v, s, "up")
			s.mutex.Lock()
			gone := s.main.gone
			s.mutex.Unlock()
			v.Processes.Close()
			begin := time.Now()
			v.StopServices(begin.Add(test.limit))
			if took := time.Since(begin); took < min(test.grace, test.limit) || took >= inittest.LongEnough {
				t.Errorf("took %s", took)
			}
			if !strings.Contains(console.String(), "stubborn does not end: killing it") {
				t.Error(console)
			}
			select {
			case <-gone:
			case <-time.After(inittest.LongEnough):
				t.Error("it is still there")
			}
		})
	}
}

func TestServiceLog(t *testing.T) {
	directory := t.TempDir()
	var seen []string
	log := &ServiceLog{
		path: filepath.Join(directory, "s.Log"), size: 200,
		onLine: func(line string) { seen = append(seen, line) },
		clock:  func() time.Time { return time.Date(2026, 11, 21, 18, 0, 0, 0, time.UTC) },
	}
	long := strings.Repeat("x", lineSize+10)
	log.follow(strings.NewReader("one\r\n\ntwo\n" + long + "\nlast"))
	want := []string{"one", "two", strings.Repeat("x", lineSize), "xxxxxxxxxx", "last"}
	if !slices.Equal(seen, want) {
		t.Errorf("lines %.20q", seen)
	}
	if got := log.last(); got != want[2]+" / "+want[3]+" / last" {
		t.Errorf("last words %.50q", got)
	}
	stamp := "2026-11-21T18:00:00.000Z "
	if got := inittest.Read(t, log.path); got != stamp+"xxxxxxxxxx\n"+stamp+"last\n" {
		t.Errorf("the log has %q", got)
	}
	if got := inittest.Read(t, log.path+".1"); got != stamp+"one\n"+stamp+"two\n"+stamp+want[2]+"\n" {
		t.Errorf("put aside was %.60q", got)
	}
	log.follow(strings.NewReader(strings.Repeat("more\n", 1000)))
	for _, path := range []string{log.path, log.path + ".1"} {
		if info, err := os.Stat(path); err != nil || info.Size() > 200+100 {
			t.Errorf("%s: %v, %d bytes", path, err, info.Size())
		}
	}
	log.path = log.path + "/below/a/file.log"
	log.follow(strings.NewReader("unwritten\n"))
	if !strings.HasSuffix(log.last(), "unwritten") {
		t.Error("without a file nothing is read")
	}
}

func TestParseService(t *testing.T) {
	got, err := parseService("docker", []byte(`{"argv": ["/usr/sbin/dockerd"], "environment": {"A": "1"},
		"start": "named", "after": ["chrony"], "mounts": ["/var/lib/docker"]}`))
	if err != nil || got.Name != "docker" || got.Start != startNamed || got.Restart != restartAlways ||
		got.Environment[0] != "A=1" || got.After[0] != "chrony" || got.Mounts[0] != "/var/lib/docker" {
		t.Errorf("got %+v, %v", got, err)
	}
	for text, cause := range map[string]string{
		`{"argv": []}`:                             "absolute path",
		`{"argv": ["dockerd"]}`:                    "absolute path",
		`{"argv": ["/d"], "start": "later"}`:       "later",
		`{"argv": ["/d"], "restart": "sometimes"}`: "sometimes",
		`{"argv": ["/d"], "mounts": ["var"]}`:      "var",
		`{"argv": ["/d"], "user": "nobody"}`:       "user",
		`{"argv": "/d"}`:                           "argv",
		`{"argv": ["/d"]`:                          "",
		``:                                         "",
	} {
		if _, err := parseService("x", []byte(text)); err == nil || !strings.Contains(err.Error(), cause) {
			t.Errorf("%s: %v", text, err)
		}
	}
	if _, err := parseService("sshd", []byte(`{"argv": ["/d"]}`)); err == nil {
		t.Error("a second sshd")
	}
}

func TestLoadServices(t *testing.T) {
	directory := t.TempDir()
	inittest.Write(t, filepath.Join(directory, "b.json"), `{"argv": ["/b"]}`)
	inittest.Write(t, filepath.Join(directory, "a.json"), `{"argv": ["/a"]}`)
	inittest.Write(t, filepath.Join(directory, "broken.json"), `{`)
	inittest.Write(t, filepath.Join(directory, "README"), `not one`)
	found, complaints := loadServices(directory)
	if len(found) != 2 || found[0].Name != "a" || found[1].Name != "b" || len(complaints) != 1 ||
		!strings.Contains(complaints[0].Error(), "broken.json") {
		t.Errorf("%v, %v", found, complaints)
	}
}

func TestChooseServices(t *testing.T) {
	declare := func(name, start string, after ...string) Service {
		return Service{Name: name, Start: start, After: after}
	}
	for _, test := range []struct {
		name       string
		declared   []Service
		named      []string
		want       string
		complaints int
	}{
		{"nothing", nil, nil, "", 0},
		{"by name", []Service{declare("a", startAlways), declare("b", startAlways)}, nil, "a b", 0},
		{"after", []Service{declare("a", startAlways, "b"), declare("b", startAlways)}, nil, "b a", 0},
		{"only always", []Service{declare("a", startNamed), declare("b", startAlways)}, nil, "b", 0},
		{"named", []Service{declare("a", startNamed), declare("b", startAlways)}, []string{"a"}, "a b", 0},
		{"brings another", []Service{declare("a", startNamed), declare("b", startAlways, "a")}, nil, "a b", 0},
		{"twice", []Service{declare("a", startAlways)}, []string{"a", "a"}, "a", 0},
		{"unknown", []Service{declare("a", startAlways)}, []string{"b"}, "a", 1},
		{"after unknown", []Service{declare("a", startAlways, "x")}, nil, "a", 1},
		{"circle", []Service{declare("a", startAlways, "b"), declare("b", startAlways, "a")}, nil, "b a", 1},
		{"after itself", []Service{declare("a", startAlways, "a")}, nil, "a", 1},
	} {
		chosen, complaints := chooseServices(test.declared, test.named)
		var names []string
		for _, s := range chosen {
			names = append(names, s.Name)
		}
		if got := strings.Join(names, " "); got != test.want || len(complaints) != test.complaints {
			t.Errorf("%s: %q, %v", test.name, got, complaints)
		}
	}
}

func TestDescribe(t *testing.T) {
	if got := Describe(syscall.WaitStatus(9)); got != "signal: killed" {
		t.Errorf("got %q", got)
	}
}
