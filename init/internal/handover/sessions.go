package handover

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"instantenv/init/internal/sysfs"
)

func decimal(number int) string { return strconv.Itoa(number) }

// A process is a line of /proc/PID/stat, as far as it matters here.
type process struct {
	pid, parent int
	session     bool // of sshd's, which serves somebody who is logged in
}

// EndSessions kills every process that belongs to a login by SSH, but those of the login that process self belongs to. It
// returns how many. proc is /proc. Connections that have not logged in yet stay: they will need a key that is still there.
func EndSessions(proc string, self int, kill func(pid int, signal syscall.Signal) error) (ended int, err error) {
	processes, err := processesIn(proc)
	ours := sessionOf(self, processes)
	for _, p := range processes {
		session := sessionOf(p.pid, processes)
		if session == 0 || session == ours {
			continue
		}
		if failed := kill(p.pid, syscall.SIGKILL); failed == nil {
			ended++
		} else if failed != syscall.ESRCH {
			err = failed
		}
	}
	return ended, err
}

// sessionOf is the process of sshd that a process is below, or is itself; 0 when there is none.
func sessionOf(pid int, processes []process) (session int) {
	for range processes { // no chain of parents is longer
		at := slices.IndexFunc(processes, func(p process) bool { return p.pid == pid })
		if at < 0 {
			break
		}
		if processes[at].session {
			session = pid // and one above it counts more
		}
		pid = processes[at].parent
	}
	return session
}

func processesIn(proc string) (processes []process, err error) {
	// Not os.ReadDir: see package shutdown.
	files, err := filepath.Glob(proc + "/[0-9]*/stat")
	for _, file := range files {
		line, _ := sysfs.ReadLine(file) // none when it has ended
		// Of proc_pid_stat(5): pid (name) state ppid ...; a name may have brackets and blanks.
		end := strings.LastIndexByte(line, ')')
		fields := strings.Fields(line[end+1:])
		if end < 0 || len(fields) < 2 {
			continue
		}
		id, name, _ := strings.Cut(line[:end], " (")
		p := process{session: strings.HasPrefix(name, "sshd") && isSession(filepath.Dir(file))}
		p.pid, _ = strconv.Atoi(id)
		p.parent, _ = strconv.Atoi(fields[1])
		processes = append(processes, p)
	}
	return processes, err
}

// isSession tells by the title that sshd gives its processes: "sshd: admin@pts/0", or "sshd: admin" before there is a
// command, and with "sshd-session:" since OpenSSH 9.8. The others have a word in brackets: [listener], [accepted], [net],
// and [priv], which ends with its child.
func isSession(directory string) bool {
	text, err := os.ReadFile(directory + "/cmdline")
	title, _, _ := strings.Cut(string(text), "\x00")
	return err == nil && strings.HasPrefix(title, "sshd") && strings.Contains(title, ": ") && !strings.Contains(title, "[")
}
