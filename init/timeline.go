package main

import (
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"instantenv/init/internal/atomicfile"
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
	data  timelineData
}

type timelineData struct {
	Version int    `json:"version"`
	Clock   string `json:"clock"`
	PID1    bool   `json:"pid1"`
	Marks   []mark `json:"marks"`
}

type mark struct {
	Name       string  `json:"name"`
	BoottimeMS float64 `json:"boottime_ms"`
}

func newTimeline(clock func() time.Duration, pid1 bool) *timeline {
	return &timeline{clock: clock, data: timelineData{Version: 1, Clock: "CLOCK_BOOTTIME", PID1: pid1, Marks: []mark{}}}
}

func (t *timeline) mark(name string) {
	now := math.Round(float64(t.clock())/float64(time.Microsecond)) / 1000
	t.mutex.Lock()
	defer t.mutex.Unlock()
	for _, earlier := range t.data.Marks {
		if earlier.Name == name {
			return
		}
	}
	t.data.Marks = append(t.data.Marks, mark{name, now})
}

func (t *timeline) json() []byte {
	t.mutex.Lock()
	defer t.mutex.Unlock()
	text, err := json.Marshal(t.data)
	if err != nil {
		panic(err) // numbers and names: it cannot fail
	}
	return text
}

func (t *timeline) write(path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return atomicfile.Write(path, append(t.json(), '\n'), 0o644, atomicfile.Root)
}
