package supervisor

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"time"
)

// A Gate keeps a listening server from accepting connections until it is open. Clients wait in the backlog until then, so
// no authentication fails because the key is not installed yet.
//
// It is the server's pid file, a FIFO. sshd writes that file after it has bound its sockets and before it accepts
// anybody (main() in sshd.c), and cannot open a FIFO without a reader. This depends on no other part of its configuration,
// unlike its log, which depends on LogLevel.
type Gate struct {
	Path   string
	Open   <-chan struct{}  // closed to open it
	Passed func(pid string) // called when a server goes on to accept connections
}

// prepare makes the FIFO for a server that is about to be started: a server that ends normally removes it.
func (g *Gate) prepare() error {
	if err := os.Remove(g.Path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("gate: %w", err)
	}
	if err := syscall.Mkfifo(g.Path, 0o600); err != nil {
		return fmt.Errorf("gate %s: %w", g.Path, err)
	}
	return nil
}

func (g *Gate) isOpen() bool {
	select {
	case <-g.Open:
		return true
	default:
		return false
	}
}

// attend waits for the gate to open and lets the server continue. It also returns when gone is closed: the server ended.
func (g *Gate) attend(gone <-chan struct{}) error {
	select {
	case <-g.Open:
	case <-gone:
		return nil
	}
	// For writing, too: a FIFO without any writer would be at its end.
	fifo, err := os.OpenFile(g.Path, os.O_RDWR|syscall.O_NONBLOCK, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil // the server has ended, in order
	}
	if err != nil {
		return fmt.Errorf("gate: %w", err)
	}
	defer fifo.Close()
	read := make(chan struct{})
	defer close(read)
	go func() {
		select {
		case <-gone:
			_ = fifo.SetReadDeadline(time.Unix(1, 0)) // ends Read; a FIFO can be polled
		case <-read:
		}
	}()
	pid := make([]byte, 32)
	length, err := fifo.Read(pid)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("gate: %w", err)
	}
	g.Passed(strings.TrimSpace(string(pid[:length])))
	return nil
}
