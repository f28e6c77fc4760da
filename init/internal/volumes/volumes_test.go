package volumes

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"instantenv/init/internal/inittest"
	"instantenv/init/internal/logging"
	"instantenv/init/internal/phases"
	"instantenv/init/internal/task"
	"instantenv/init/internal/userdata"
)

func mounter(t *testing.T) *Mounter {
	t.Helper()
	log := &logging.Logger{}
	return &Mounter{
		Log: log, Book: phases.Book(t.TempDir()), Tasks: &task.Group{Log: log, Fatal: func(err error) { t.Error(err) }},
	}
}

func recorded(t *testing.T, m *Mounter) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(string(m.Book), "phases.json"))
	if err != nil {
		t.Fatal(err)
	}
	_, line, _ := strings.Cut(string(text), `"name":"mounted",`)
	return line
}

func TestThePhaseOfAllVolumes(t *testing.T) {
	for _, test := range []struct {
		states []state
		want   string
	}{
		{nil, `"state":"done"`},
		{[]state{{phases.Done, ""}, {phases.Running, ""}}, `"state":"running"`},
		{[]state{{phases.Running, "waiting"}, {phases.Done, ""}}, `"reason":"waiting"`},
		{[]state{{phases.Failed, "one"}, {phases.Running, ""}, {phases.Done, ""}, {phases.Failed, "two"}}, `"reason":"one; two"`},
		{[]state{{phases.Running, ""}, {phases.Failed, "one"}, {phases.Running, ""}}, `"state":"failed"`},
		{[]state{{phases.Done, ""}, {phases.Done, ""}}, `"state":"done"`},
	} {
		m := mounter(t)
		m.states = test.states
		m.record()
		if got := recorded(t, m); !strings.Contains(got, test.want) {
			t.Errorf("%+v: %s", test.states, got)
		}
	}
}

func TestAMountThatFails(t *testing.T) {
	m := mounter(t)
	m.Account = func(string) (int, int, error) { return 0, 0, errors.New("no such user") }
	m.Run = func(argv []string) error { t.Errorf("ran %q", argv); return nil }
	m.Mount([]userdata.MountRequest{{Device: "/dev/null", Path: "/data", Filesystem: "ext4", Format: "blank", Owner: "x"}})
	inittest.WaitFor(t, "the failure", func() bool {
		return strings.Contains(recorded(t, m), `"reason":"volume /dev/null is not mounted on /data: no such user"`)
	})
}

func TestNoVolumesAreMountedAtOnce(t *testing.T) {
	m := mounter(t)
	m.Mount(nil)
	if got := recorded(t, m); !strings.Contains(got, `"state":"done"`) {
		t.Error(got)
	}
}

func TestAMountPointIsWhereItsNameSays(t *testing.T) {
	directory, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if err := makeMountPoint(directory + "/a/b"); err != nil {
		t.Error(err)
	}
	if err := os.Symlink(directory+"/a", directory+"/link"); err != nil {
		t.Fatal(err)
	}
	if err := makeMountPoint(directory + "/link/b"); err == nil || !strings.Contains(err.Error(), directory+"/a/b") {
		t.Errorf("%v", err)
	}
}

func TestAFileSystemIsRepairedBeforeItIsMounted(t *testing.T) {
	if find("fsck.ext4") == "" {
		t.Skip("no fsck.ext4 here")
	}
	for _, test := range []struct {
		kind    string
		results []error
		runs    int
		fails   bool
	}{
		{"ext4", []error{nil}, 1, false},
		{"ext4", []error{errors.New("status 1"), nil}, 2, false},
		{"ext4", []error{errors.New("status 4"), errors.New("status 4")}, 2, true},
		{"xfs", nil, 0, false},
	} {
		m := mounter(t)
		runs := 0
		m.Run = func(argv []string) error {
			if !reflect.DeepEqual(argv[1:], []string{"-p", "/dev/x"}) || filepath.Base(argv[0]) != "fsck.ext4" {
				t.Errorf("%q", argv)
			}
			runs++
			return test.results[runs-1]
		}
		if err := m.check(test.kind, "/dev/x"); runs != test.runs || (err != nil) != test.fails {
			t.Errorf("%+v: %d runs, %v", test, runs, err)
		}
	}
}
