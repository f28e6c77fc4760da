// Command imds serves one connection to the metadata service on its standard input and output. QEMU's
// user-mode network starts it once per TCP connection of the guest:
//
//	-netdev user,...,guestfwd=tcp:169.254.169.254:80-cmd:/path/imds --metadata /path/i-0abc.json
//
// Starting up is part of every measured boot, so it stays free of net/http and of anything else with a costly
// package initialisation. libslirp connects standard error to the guest as well; nothing is ever written there
// while serving.
package main

import (
	"io"
	"net"
	"os"
	"time"

	"instantenv/instant_env/localec2/imds"
)

const usage = "usage: imds --metadata FILE\n"

func main() {
	os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// run returns the exit status: 0 when the connection ended, 2 for a wrong command line.
func run(args []string, in io.Reader, out, errors io.Writer) int {
	if len(args) != 2 || args[0] != "--metadata" {
		io.WriteString(errors, usage)
		return 2
	}
	imds.NewServer(args[1]).ServeConn(&stdio{Reader: in, Writer: out})
	return 0
}

// stdio is a connection made of two streams. A blocked read on an inherited descriptor knows no deadline, so
// one that passes ends the process.
type stdio struct {
	io.Reader
	io.Writer
	idle *time.Timer
}

func (s *stdio) SetReadDeadline(deadline time.Time) error {
	if s.idle != nil {
		s.idle.Stop()
	}
	s.idle = time.AfterFunc(time.Until(deadline), func() { os.Exit(0) })
	return nil
}

func (s *stdio) Close() error                     { return nil }
func (s *stdio) LocalAddr() net.Addr              { return nil }
func (s *stdio) RemoteAddr() net.Addr             { return nil }
func (s *stdio) SetDeadline(time.Time) error      { return nil }
func (s *stdio) SetWriteDeadline(time.Time) error { return nil }
