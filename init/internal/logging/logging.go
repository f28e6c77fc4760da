// Package logging writes lines for two readers: the journal, and the serial console.
package logging

import (
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"

	"instantenv/init/internal/paths"
)

// A Logger writes to two places: Journal takes everything (the kernel's log, or systemd's), Console only what helps a
// person at the serial console of a machine that did not come up. Either may be nil.
type Logger struct {
	mutex            sync.Mutex
	Journal, Console io.Writer
}

// Journalf writes to the journal only.
func (l *Logger) Journalf(format string, values ...any) {
	l.write(false, fmt.Sprintf(format, values...))
}

// JournalLines writes lines to the journal only.
func (l *Logger) JournalLines(lines []string) {
	for _, line := range lines {
		l.write(false, line)
	}
}

// Consolef writes to both.
func (l *Logger) Consolef(format string, values ...any) {
	l.write(true, fmt.Sprintf(format, values...))
}

func (l *Logger) write(loud bool, text string) {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	line := []byte("instant-init: " + text + "\n")
	// A line that cannot be logged is lost: there is nowhere left to say so.
	if l.Journal != nil {
		_, _ = l.Journal.Write(line)
	}
	if loud && l.Console != nil {
		_, _ = l.Console.Write(line)
	}
}

// Open switches to the devices, once /dev is mounted, and makes the console the process's standard files: the kernel could
// not do so if there was no /dev/console yet.
func (l *Logger) Open() {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	if kernel, err := os.OpenFile("/dev/kmsg", os.O_WRONLY, 0); err == nil {
		l.Journal = kernelLog{kernel}
	}
	console, err := os.OpenFile(paths.Console, os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		return
	}
	l.Console = console
	for fd := range 3 {
		_ = syscall.Dup3(int(console.Fd()), fd, 0)
	}
}

// A kernelLog writes lines to /dev/kmsg.
type kernelLog struct{ device io.Writer }

// Write prefixes the priority "debug", which the kernel does not print on the console by default: the Logger writes the
// console's lines itself, even if the command line says quiet.
func (k kernelLog) Write(line []byte) (int, error) {
	if _, err := k.device.Write(append([]byte("<7>"), line...)); err != nil {
		return 0, err
	}
	return len(line), nil
}
