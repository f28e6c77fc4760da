package supervisor

import (
	"bufio"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"instantenv/init/internal/paths"
)

const (
	// logDirectory is in memory: it is there when the root is read-only or full, and no image holds what was
	// printed while it was baked.
	logDirectory = paths.Runtime + "/log"
	// logSize is when a log is put aside as .1, in place of the one before: twice that is a service's most.
	logSize = 256 << 10
	// lineSize is where a longer line is cut in two.
	lineSize = 4 << 10
	// tailLines is how many of its last lines are shown when a service ends.
	tailLines = 3
)

// A ServiceLog writes a service's output to a file of bounded size, and keeps the last lines in memory.
type ServiceLog struct {
	path   string
	size   int64             // of the file at which it is put aside
	onLine func(line string) // sees each line; may be nil
	clock  func() time.Time

	mutex sync.Mutex
	lines []string
}

func NewServiceLog(name string, onLine func(string)) *ServiceLog {
	return &ServiceLog{path: filepath.Join(logDirectory, name+".log"), size: logSize, onLine: onLine, clock: time.Now}
}

// follow reads lines to the end of the output. A line that cannot be written is lost: if it stopped reading, the service
// would block on its own output.
func (l *ServiceLog) follow(output io.Reader) {
	file, length := l.open()
	defer func() { file.Close() }()
	for lines := bufio.NewReaderSize(output, lineSize); ; {
		text, err := lines.ReadSlice('\n') // the buffer when it is full
		if line := strings.TrimRight(string(text), "\r\n"); line != "" {
			if length > l.size {
				file.Close()
				_ = os.Rename(l.path, l.path+".1")
				file, length = l.open()
			}
			n, _ := file.WriteString(l.clock().UTC().Format("2006-01-02T15:04:05.000Z ") + line + "\n")
			length += int64(n)
			l.add(line)
			if l.onLine != nil {
				l.onLine(line)
			}
		}
		if err != nil && err != bufio.ErrBufferFull {
			return
		}
	}
}

// open opens the file for appending. If that fails (memory is short), so do writes, which are ignored.
func (l *ServiceLog) open() (*os.File, int64) {
	_ = os.MkdirAll(filepath.Dir(l.path), 0o755)
	file, err := os.OpenFile(l.path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o640)
	if err != nil {
		return nil, 0 // methods of a nil file return an error
	}
	info, err := file.Stat()
	if err != nil {
		return file, 0
	}
	return file, info.Size()
}

func (l *ServiceLog) add(line string) {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	l.lines = append(l.lines, line)
	l.lines = l.lines[max(0, len(l.lines)-tailLines):]
}

func (l *ServiceLog) last() string {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	return strings.Join(l.lines, " / ")
}
