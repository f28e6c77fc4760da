package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"instantenv/init/internal/atomicfile"
	"instantenv/init/internal/json"
	"instantenv/init/internal/paths"
	"instantenv/init/internal/sysfs"
)

const timelineFile = paths.Runtime + "/timeline.json"

// A timeline records when something happened for the first time in this boot, or since the machine woke up, how long
// each stage took, and how much had been read from the root disk by then.
type timeline struct {
	mutex  sync.Mutex
	clock  func() time.Duration
	pid1   bool
	marks  []mark
	stages []*stage
	reads  []reads
}

type mark struct {
	name string
	at   time.Duration // on the clock
}

// A stage is a piece of work; its end is zero until it has one, and stays so when the work failed.
type stage struct {
	name       string
	start, end time.Duration
}

// reads is what was read from the root disk until a mark.
type reads struct {
	mark string
	diskReads
}

func newTimeline(clock func() time.Duration, pid1 bool) *timeline {
	return &timeline{clock: clock, pid1: pid1}
}

// mark tells whether it is the first of its name: later ones are not recorded.
func (t *timeline) mark(name string) bool { return t.markAt(name, t.clock()) }

func (t *timeline) markAt(name string, at time.Duration) bool {
	t.mutex.Lock()
	defer t.mutex.Unlock()
	for _, earlier := range t.marks {
		if earlier.name == name {
			return false
		}
	}
	t.marks = append(t.marks, mark{name, at})
	return true
}

// ofWaking are the marks that belong to the latest time that the machine woke up.
var ofWaking = []string{resumedMark, keyReceivedMark, keyWrittenMark}

const (
	resumedMark     = "resumed"
	keyReceivedMark = "key_received"
	keyWrittenMark  = "key_written"
)

// wake records that the machine goes on, and lets what it does again be recorded again.
func (t *timeline) wake() {
	t.mutex.Lock()
	t.marks = slices.DeleteFunc(t.marks, func(m mark) bool { return slices.Contains(ofWaking, m.name) })
	t.mutex.Unlock()
	t.mark(resumedMark)
}

// stage begins one; calling what it returns ends it.
func (t *timeline) stage(name string) (end func()) {
	begun := &stage{name: name, start: t.clock()}
	t.mutex.Lock()
	defer t.mutex.Unlock()
	t.stages = append(t.stages, begun)
	return func() {
		t.mutex.Lock()
		defer t.mutex.Unlock()
		begun.end = t.clock()
	}
}

// markReads records what was read from the root disk up to a mark.
func (t *timeline) markReads(mark string, read diskReads) {
	t.mutex.Lock()
	defer t.mutex.Unlock()
	t.reads = append(t.reads, reads{mark, read})
}

func (t *timeline) json() []byte {
	t.mutex.Lock()
	defer t.mutex.Unlock()
	text := strconv.AppendBool([]byte(`{"version":2,"clock":"CLOCK_BOOTTIME","pid1":`), t.pid1)
	text = append(text, `,"marks":[`...)
	for i, entry := range t.marks {
		text = json.AppendText(append(separated(text, i), `{"name":`...), entry.name)
		text = append(appendMS(append(text, `,"boottime_ms":`...), entry.at), '}')
	}
	text = append(text, `],"stages":[`...)
	for i, entry := range t.stages {
		text = json.AppendText(append(separated(text, i), `{"name":`...), entry.name)
		text = appendMS(append(text, `,"start_ms":`...), entry.start)
		text = append(text, `,"end_ms":`...)
		if entry.end == 0 {
			text = append(text, "null}"...)
		} else {
			text = append(appendMS(text, entry.end), '}')
		}
	}
	text = append(text, `],"root_reads":[`...)
	for i, entry := range t.reads {
		text = json.AppendText(append(separated(text, i), `{"mark":`...), entry.mark)
		text = strconv.AppendInt(append(text, `,"requests":`...), entry.requests, 10)
		text = append(strconv.AppendInt(append(text, `,"bytes":`...), entry.bytes, 10), '}')
	}
	return append(text, `]}`...)
}

func separated(text []byte, index int) []byte {
	if index > 0 {
		return append(text, ',')
	}
	return text
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

// diskReads counts what a block device has read since the kernel started.
type diskReads struct{ requests, bytes int64 }

// rootReads asks the disk that the root file system is on, all of its partitions together.
func rootReads() (diskReads, error) {
	var root syscall.Stat_t
	if err := syscall.Stat("/", &root); err != nil {
		return diskReads{}, fmt.Errorf("stat /: %w", err)
	}
	// The encoding of new_encode_dev(), linux/kdev_t.h.
	major, minor := root.Dev>>8&0xfff, root.Dev&0xff|root.Dev>>12&0xfff00
	device := fmt.Sprintf("/sys/dev/block/%d:%d/", major, minor)
	if _, err := os.Stat(device + "partition"); err == nil {
		device += "../" // the kernel's tree has partitions below their disk
	}
	line, err := sysfs.ReadLine(device + "stat")
	if err != nil {
		return diskReads{}, err
	}
	return parseDiskStat(line)
}

// parseDiskStat reads the first and third number of Documentation/block/stat.rst: read requests, and sectors read,
// which are of 512 bytes whatever the device's are.
func parseDiskStat(line string) (diskReads, error) {
	fields := strings.Fields(line)
	if len(fields) < 3 {
		return diskReads{}, fmt.Errorf("disk statistics: %q", line)
	}
	requests, err := strconv.ParseInt(fields[0], 10, 64)
	if err != nil {
		return diskReads{}, fmt.Errorf("disk statistics: %w", err)
	}
	sectors, err := strconv.ParseInt(fields[2], 10, 64)
	if err != nil {
		return diskReads{}, fmt.Errorf("disk statistics: %w", err)
	}
	return diskReads{requests: requests, bytes: sectors * 512}, nil
}
