// Command imds is the instance metadata service of one machine of localec2, as EC2 offers it at
// 169.254.169.254: IMDSv2 session tokens, the meta-data tree, user data and the identity document.
//
// It serves exactly one connection on its standard input and output and exits when the peer closes
// it or has been silent for 30 seconds. QEMU's user-mode network starts it once per TCP connection
// of the guest:
//
//	-netdev user,...,guestfwd=tcp:169.254.169.254:80-cmd:/path/imds --metadata /path/i-0abc.json
//
// Starting up is part of every measured boot, so it stays free of net/http and of anything else with
// a costly package initialisation. libslirp connects standard error to the guest as well; nothing is
// ever written there while serving.
//
// The metadata file is JSON, read again for every request, so its writer replaces it by rename and
// the guest sees the change at once. Its schema, and what cloud-init needs to find in it, is in
// README.md. The process keeps no state: a token is an expiry time signed with the file's token_key,
// which any later process can check.
package main

import (
	"io"
	"os"
	"time"
)

const (
	idleTimeout = 30 * time.Second
	usage       = "usage: imds --metadata FILE\n"
)

func main() {
	os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// run returns the exit status: 0 when the connection ended in an orderly way, 1 when it broke, 2 for
// a wrong command line.
func run(args []string, in io.Reader, out, errors io.Writer) int {
	if len(args) != 2 || args[0] != "--metadata" {
		io.WriteString(errors, usage)
		return 2
	}
	service := &service{load: func() (*metadata, error) { return loadMetadata(args[1]) }, now: time.Now}
	// A blocked read on an inherited descriptor has no deadline, so idleness ends the process.
	idle := time.AfterFunc(idleTimeout, func() { os.Exit(0) })
	connection := newConnection(&watchedReader{in, func() { idle.Reset(idleTimeout) }}, out)
	if err := connection.serve(service.answer); err != nil {
		return 1
	}
	return 0
}

// watchedReader calls progress after every read that brought bytes.
type watchedReader struct {
	io.Reader
	progress func()
}

func (r *watchedReader) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	if n > 0 {
		r.progress()
	}
	return n, err
}
