// Package timeline records when the stages of a boot began and ended.
package timeline

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

const File = paths.Runtime + "/timeline.json"

// A Timeline records when events first happened in this boot (or since the machine resumed), how long each stage took, and
// how much had been read from the root disk at some marks.
type Timeline struct {
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

// A stage is a piece of work. Its end is zero until the work succeeds.
type stage struct {
	name       string
	start, end time.Duration
}

// reads is what was read from the root disk until a mark.
type reads struct {
	mark string
	DiskReads
}

func New(clock func() time.Duration, pid1 bool) *Timeline {
	return &Timeline{clock: clock, pid1: pid1}
}

// Mark records the first event of this name, and reports whether this was the first.
func (t *Timeline) Mark(name string) bool { return t.MarkAt(name, t.clock()) }

func (t *Timeline) MarkAt(name string, at time.Duration) bool {
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

// ofWaking are the marks that belong to the latest resume.
var ofWaking = []string{Resumed, KeyReceived, KeyWritten}

const (
	Resumed     = "resumed"
	KeyReceived = "key_received"
	KeyWritten  = "key_written"
)

// Wake records a resume from hibernation, and forgets the marks that every resume sets again.
func (t *Timeline) Wake() {
	t.mutex.Lock()
	t.marks = slices.DeleteFunc(t.marks, func(m mark) bool { return slices.Contains(ofWaking, m.name) })
	t.mutex.Unlock()
	t.Mark(Resumed)
}

// Stage begins a stage; the returned function ends it.
func (t *Timeline) Stage(name string) (end func()) {
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

// MarkReads records what was read from the root disk up to a mark.
func (t *Timeline) MarkReads(mark string, read DiskReads) {
	t.mutex.Lock()
	defer t.mutex.Unlock()
	t.reads = append(t.reads, reads{mark, read})
}

func (t *Timeline) JSON() []byte {
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
		text = strconv.AppendInt(append(text, `,"requests":`...), entry.Requests, 10)
		text = append(strconv.AppendInt(append(text, `,"bytes":`...), entry.Bytes, 10), '}')
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

func (t *Timeline) Write(path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return atomicfile.Write(path, append(t.JSON(), '\n'), 0o644, atomicfile.Root)
}

// DiskReads counts what a block device has read since the kernel started.
type DiskReads struct{ Requests, Bytes int64 }

// RootReads returns the reads of the disk with the root file system, all partitions together.
func RootReads() (DiskReads, error) {
	var root syscall.Stat_t
	if err := syscall.Stat("/", &root); err != nil {
		return DiskReads{}, fmt.Errorf("stat /: %w", err)
	}
	// The encoding of new_encode_dev(), linux/kdev_t.h.
	major, minor := root.Dev>>8&0xfff, root.Dev&0xff|root.Dev>>12&0xfff00
	device := fmt.Sprintf("/sys/dev/block/%d:%d/", major, minor)
	if _, err := os.Stat(device + "partition"); err == nil {
		device += "../" // the kernel's tree has partitions below their disk
	}
	line, err := sysfs.ReadLine(device + "stat")
	if err != nil {
		return DiskReads{}, err
	}
	return parseDiskStat(line)
}

// parseDiskStat reads the first and third number of Documentation/block/stat.rst: read requests, and sectors read,
// which are of 512 bytes whatever the device's are.
func parseDiskStat(line string) (DiskReads, error) {
	fields := strings.Fields(line)
	if len(fields) < 3 {
		return DiskReads{}, fmt.Errorf("disk statistics: %q", line)
	}
	requests, err := strconv.ParseInt(fields[0], 10, 64)
	if err != nil {
		return DiskReads{}, fmt.Errorf("disk statistics: %w", err)
	}
	sectors, err := strconv.ParseInt(fields[2], 10, 64)
	if err != nil {
		return DiskReads{}, fmt.Errorf("disk statistics: %w", err)
	}
	return DiskReads{Requests: requests, Bytes: sectors * 512}, nil
}
