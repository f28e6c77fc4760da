package handover

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"testing"

	"instantenv/init/internal/inittest"
)

// A row is one process: its id, its parent, its name and its command line.
type row struct {
	pid, parent int
	name, title string
}

func table(t *testing.T, rows []row) string {
	t.Helper()
	proc := t.TempDir()
	for _, r := range rows {
		directory := filepath.Join(proc, strconv.Itoa(r.pid))
		if err := os.Mkdir(directory, 0o755); err != nil {
			t.Fatal(err)
		}
		inittest.Write(t, filepath.Join(directory, "stat"), fmt.Sprintf("%d (%s) S %d 1 1 0 -1\n", r.pid, r.name, r.parent))
		inittest.Write(t, filepath.Join(directory, "cmdline"), r.title+"\x00\x00\x00")
	}
	return proc
}

// common is a machine with a command of ours (24) below sudo, and no other login. [priv] and [net] are the halves of a
// connection that has not logged in.
func common(sshd string) []row {
	return []row{
		{1, 0, "instant-init", "/usr/sbin/instant-init"},
		{2, 0, "kthreadd", ""},
		{9, 2, "kworker/0:0-x) y (", ""},
		{10, 1, "sshd", "sshd: /usr/sbin/sshd -D -e [listener] 1 of 10-100 startups"},
		{20, 10, sshd, sshd + ": admin [priv]"},
		{21, 20, sshd, sshd + ": admin@notty"},
		{22, 21, "sudo", "sudo\x00-n\x00/usr/sbin/instant-init\x00hand-over"},
		{23, 22, "sudo", "sudo"},
		{24, 23, "instant-init", "/usr/sbin/instant-init\x00hand-over"},
		{25, 21, "sh", "a second command of ours"},
		{30, 10, sshd, sshd + ": admin [priv]"},
		{31, 30, sshd, sshd + ": admin [net]"},
		{32, 10, sshd, sshd + ": [accepted]"},
		{33, 10, sshd, "/usr/lib/openssh/sshd-session\x00-D\x00-R"},
		{40, 1, "dockerd", "sshd: admin@pts/0"}, // by its name it is none
	}
}

func TestEndSessions(t *testing.T) {
	for _, test := range []struct {
		name string
		sshd string
		more []row
		self int
		want []int
	}{
		{name: "none", sshd: "sshd", self: 24},
		{
			name: "with all that runs below it", sshd: "sshd", self: 24, want: []int{51, 52, 53, 54},
			more: []row{
				{50, 10, "sshd", "sshd: admin [priv]"}, {51, 50, "sshd", "sshd: admin@pts/0"}, {52, 51, "bash", "-bash"},
				{53, 52, "sudo", "sudo\x00-s"}, {54, 53, "bash", "bash"},
			},
		},
		{
			name: "of root, without a half that has privileges", sshd: "sshd", self: 24, want: []int{50, 51},
			more: []row{{50, 10, "sshd", "sshd: root@notty"}, {51, 50, "sh", "sh"}},
		},
		{
			name: "without a command", sshd: "sshd-session", self: 24, want: []int{51},
			more: []row{{50, 10, "sshd-session", "sshd-session: admin [priv]"}, {51, 50, "sshd-session", "sshd-session: admin"}},
		},
		{
			name: "of OpenSSH 9.8 and later", sshd: "sshd-session", self: 24, want: []int{51, 52},
			more: []row{
				{50, 10, "sshd-session", "sshd-session: admin [priv]"}, {51, 50, "sshd-session", "sshd-session: admin@pts/1"},
				{52, 51, "bash", "-bash"},
			},
		},
		{name: "all of them, when it is none itself", sshd: "sshd", self: 40, want: []int{21, 22, 23, 24, 25}},
		{
			name: "a circle of parents", sshd: "sshd", self: 24,
			more: []row{{60, 61, "x", "x"}, {61, 60, "y", "y"}, {62, 999, "an orphan", "z"}},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			var killed []int
			ended, err := EndSessions(table(t, append(common(test.sshd), test.more...)), test.self, func(pid int, signal syscall.Signal) error {
				if signal != syscall.SIGKILL {
					t.Errorf("signal %v", signal)
				}
				killed = append(killed, pid)
				return nil
			})
			slices.Sort(killed)
			if err != nil || ended != len(test.want) || !slices.Equal(killed, test.want) {
				t.Errorf("killed %v (%d), %v; want %v", killed, ended, err, test.want)
			}
		})
	}
}

func TestASessionThatCannotBeEnded(t *testing.T) {
	proc := table(t, append(common("sshd"), row{50, 10, "sshd", "sshd: root@notty"}, row{51, 50, "sh", "sh"}, row{52, 50, "sh", "sh"}))
	ended, err := EndSessions(proc, 24, func(pid int, _ syscall.Signal) error {
		return map[int]error{50: syscall.EPERM, 51: syscall.ESRCH}[pid]
	})
	if ended != 1 || err != syscall.EPERM {
		t.Errorf("%d, %v: one was gone already, and one stays", ended, err)
	}
}
