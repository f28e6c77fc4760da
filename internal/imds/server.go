// Package imds is the instance metadata service of one machine of localec2, as EC2 offers it at
// 169.254.169.254: IMDSv2 session tokens, the meta-data tree, user data and the identity document.
//
// A Server answers for one metadata file, on any number of connections at once; who accepts them (and so knows
// which machine asks) is the caller's business. The file is JSON, read again when it has changed, so its writer
// replaces it by rename and the guest sees the change at once. Its schema, and what cloud-init needs to find in
// it, is in README.md. A Server keeps no session state: a token is an expiry time signed with the file's
// token_key, which any later Server of the same file can check.
package imds

import (
	"net"
	"time"
)

// idleTimeout is how long a connection may be silent.
const idleTimeout = 30 * time.Second

// defaultTTL is the IP time-to-live of everything but the answer to a token request.
const defaultTTL = 64

// Server serves one machine.
type Server struct {
	load func() (*metadata, error)
	now  func() time.Time
}

// NewServer makes the service of the machine that metadataFile describes. The file may come, change and go
// later; while it is missing or wrong every answer is a 500 that says why.
func NewServer(metadataFile string) *Server {
	return &Server{load: (&file{path: metadataFile}).load, now: time.Now}
}

// ServeConn answers the requests of one connection, in order, until the peer closes it, breaks the protocol or
// has been silent for 30 seconds, and closes it then.
//
// Where conn has a method SetTTL(uint8) error it is called before an answer is written whose IP time-to-live
// differs from the one before: the file's hop_limit for the answer to a PUT, 64 for all others. An error of it
// ends the connection: an answer with a wrong hop limit would go where it must not.
func (s *Server) ServeConn(conn net.Conn) {
	defer conn.Close()
	c := newConnection(&deadlineReader{conn}, conn)
	c.now = s.now
	if limited, ok := conn.(interface{ SetTTL(uint8) error }); ok {
		c.setTTL = limited.SetTTL
	}
	_ = c.serve(s.answer) // how a guest ends its connections is its own business
}

// deadlineReader lets every read wait at most idleTimeout.
type deadlineReader struct{ net.Conn }

func (r *deadlineReader) Read(p []byte) (int, error) {
	if err := r.SetReadDeadline(time.Now().Add(idleTimeout)); err != nil {
		return 0, err
	}
	return r.Conn.Read(p)
}
