package main

import (
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"instantenv/init/internal/atomicfile"
	"instantenv/init/internal/json"
)

const (
	timelineDirectory = "/run/instant-init"
	timelineFile      = timelineDirectory + "/timeline.json"
)

// clockBoottime is CLOCK_BOOTTIME: time since the kernel started, time asleep included.
const clockBoottime = 7

// bootTime reads it. The call cannot fail with a clock that Linux has had since 2.6.39.
func bootTime() time.Duration {
	var now syscall.Timespec
	_, _, _ = syscall.Syscall(syscall.SYS_CLOCK_GETTIME, clockBoottime, uintptr(unsafe.Pointer(&now)), 0)
	return time.Duration(now.Nano())
}

// waitUntil returns when the clock has reached the given time. It looks again every minute, because the clock runs
// on while a machine sleeps and the sleep function's does not.
func waitUntil(end time.Duration, clock func() time.Duration, sleep func(time.Duration)) {
	for left := end - clock(); left > 0; left = end - clock() {
		sleep(min(left, time.Minute))
	}
}

// A timeline records when something happened for the first time.
type timeline struct {
	mutex sync.Mutex
	clock func() time.Duration
	pid1  bool
	marks []mark
}

type mark struct {
	name string
	at   time.Duration // on the clock
}

func newTimeline(clock func() time.Duration, pid1 bool) *timeline {
	return &timeline{clock: clock, pid1: pid1}
}

func (t *timeline) mark(name string) {
	now := t.clock()
	t.mutex.Lock()
	defer t.mutex.Unlock()
	for _, earlier := range t.marks {
		if earlier.name == name {
			return
		}
	}
	t.marks = append(t.marks, mark{name, now})
}

func (t *timeline) json() []byte {
	t.mutex.Lock()
	defer t.mutex.Unlock()
	text := strconv.AppendBool([]byte(`{"version":1,"clock":"CLOCK_BOOTTIME","pid1":`), t.pid1)
	text = append(text, `,"marks":[`...)
	for i, entry := range t.marks {
		if i > 0 {
			text = append(text, ',')
		}
		text = json.AppendText(append(text, `{"name":`...), entry.name)
		text = appendMS(append(text, `,"boottime_ms":`...), entry.at)
		text = append(text, '}')
	}
	return append(text, `]}`...)
}

// appendMS writes a time in milliseconds, to the microsecond.
func appendMS(text []byte, at time.Duration) []byte {
	return strconv.AppendFloat(text, float64(at.Round(time.Microsecond))/float64(time.Millisecond), 'f', -1, 64)
}

func (t *timeline) write(path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return atomicfile.Write(path, append(t.json(), '\n'), 0o644, atomicfile.Root)
}
