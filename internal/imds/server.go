// Package imds is the instance metadata service of one machine of localec2, as EC2 offers it at
// 169.254.169.254: IMDSv2 session tokens, the meta-data tree, user data and the identity document.
//
// A Server answers for one metadata file, on any number of connections at once. The caller accepts them, and so knows
// which machine asks. The file is JSON, read again when it has changed, so its writer
// replaces it by rename and the guest sees the change at once. README.md has its schema, and what cloud-init needs to
// find in it. A Server keeps no session state: a token is an expiry time signed with the file's
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

// NewServer returns the service of the machine that metadataFile describes. The file may appear, change and disappear
// later; while it is missing or invalid every answer is a 500 with the reason.
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
	_ = c.serve(s.answer) // a guest may end its connections in any way
}

// deadlineReader lets every read wait at most idleTimeout.
type deadlineReader struct{ net.Conn }

func (r *deadlineReader) Read(p []byte) (int, error) {
	if err := r.SetReadDeadline(time.Now().Add(idleTimeout)); err != nil {
		return 0, err
	}
	return r.Conn.Read(p)
}
