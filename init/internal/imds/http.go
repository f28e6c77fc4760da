package imds

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"syscall"
	"time"

	"instantenv/init/internal/instant"
)

// Limits on what a server may send; EC2's largest item is 16 KiB of user data.
const (
	bodyLimit   = 1 << 20
	headerLimit = 100
)

// Timeouts. A lost SYN is sent again by the kernel only after a second, a new connection attempt is quicker. An
// exchange that takes too long gets more time at the next try.
const (
	connectTimeout  = 500 * time.Millisecond
	transferTimeout = 2 * time.Second
	patienceMost    = 16 * time.Second
)

// errTooLate is an answer that was not there in full in time.
var errTooLate = errors.New("no answer in time")

// An Endpoint is where the service listens.
type Endpoint struct {
	IP   [4]byte
	Port int
}

// connection is one HTTP/1.1 connection. Blocking sockets with timeouts stand in for package net, which would
// make the binary a fifth larger.
type connection struct {
	socket int
	reader *bufio.Reader
	until  time.Time // when the exchange has to be over
}

func dial(endpoint Endpoint) (*connection, error) {
	socket, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	c := &connection{socket: socket}
	c.reader = bufio.NewReader(c)
	if err := c.connect(endpoint); err != nil {
		syscall.Close(socket)
		return nil, fmt.Errorf("connect: %w", err)
	}
	return c, nil
}

func (c *connection) connect(endpoint Endpoint) error {
	// SO_SNDTIMEO bounds connect(2) as well, see socket(7).
	if err := c.limit(syscall.SO_SNDTIMEO, connectTimeout); err != nil {
		return err
	}
	to := &syscall.SockaddrInet4{Port: endpoint.Port, Addr: endpoint.IP}
	// The Go runtime's own signals interrupt the call; calling again goes on waiting for the same handshake.
	err := ignoringEINTR(func() error { return syscall.Connect(c.socket, to) })
	if err != nil && !errors.Is(err, syscall.EISCONN) {
		return err
	}
	return c.limit(syscall.SO_SNDTIMEO, transferTimeout)
}

func (c *connection) limit(option int, timeout time.Duration) error {
	value := syscall.NsecToTimeval(timeout.Nanoseconds())
	return syscall.SetsockoptTimeval(c.socket, syscall.SOL_SOCKET, option, &value)
}

// Read implements io.Reader for the buffered reader. The time is for the whole answer: one that comes byte by byte
// ends, too.
func (c *connection) Read(buffer []byte) (count int, err error) {
	left := time.Until(c.until)
	if left <= 0 {
		return 0, errTooLate
	}
	// At least what struct timeval can hold: zero would mean to wait for ever.
	if err := c.limit(syscall.SO_RCVTIMEO, max(left, time.Millisecond)); err != nil {
		return 0, err
	}
	err = ignoringEINTR(func() error {
		count, err = syscall.Read(c.socket, buffer)
		return err
	})
	if errors.Is(err, syscall.EAGAIN) {
		return 0, errTooLate
	}
	if err != nil {
		return 0, err
	}
	if count == 0 {
		return 0, io.EOF
	}
	return count, nil
}

func (c *connection) write(data []byte) error {
	for len(data) > 0 {
		var count int
		err := ignoringEINTR(func() (err error) {
			// MSG_NOSIGNAL: a connection that the server closed gives an error, not SIGPIPE.
			count, err = syscall.SendmsgN(c.socket, data, nil, nil, syscall.MSG_NOSIGNAL)
			return err
		})
		if err != nil {
			return err
		}
		data = data[count:]
	}
	return nil
}

func (c *connection) close() { syscall.Close(c.socket) }

func ignoringEINTR(call func() error) error {
	for {
		if err := call(); !errors.Is(err, syscall.EINTR) {
			return err
		}
	}
}

type response struct {
	status int
	body   []byte
	date   time.Time // the zero time when there was none
	last   bool      // the server closes the connection after it
}

// roundTrip sends one request and reads its response to the end, so that the connection can serve another. It takes
// no longer than patience, or errTooLate is the error.
func (c *connection) roundTrip(method, path, header string, patience time.Duration) (response, error) {
	c.until = time.Now().Add(patience)
	text := method + " " + path + " HTTP/1.1\r\nHost: 169.254.169.254\r\nUser-Agent: instant-init\r\n" + header + "\r\n"
	if method == "PUT" {
		text = strings.TrimSuffix(text, "\r\n") + "Content-Length: 0\r\n\r\n"
	}
	if err := c.write([]byte(text)); err != nil {
		return response{}, fmt.Errorf("send: %w", err)
	}
	return c.readResponse()
}

func (c *connection) readResponse() (response, error) {
	line, err := c.line()
	if err != nil {
		return response{}, err
	}
	version, rest, _ := strings.Cut(line, " ")
	code, _, _ := strings.Cut(rest, " ")
	status, err := strconv.Atoi(code)
	if err != nil || !strings.HasPrefix(version, "HTTP/1.") || status < 200 || status > 599 {
		return response{}, fmt.Errorf("not an HTTP response: %.80q", line)
	}
	answer := response{status: status, last: version == "HTTP/1.0"}
	length := -1
	for count := 0; ; count++ {
		line, err := c.line()
		if err != nil {
			return response{}, err
		}
		if line == "" {
			break
		}
		if count == headerLimit {
			return response{}, errors.New("too many header lines")
		}
		name, value, _ := strings.Cut(line, ":")
		value = strings.TrimSpace(value)
		switch strings.ToLower(name) {
		case "content-length":
			if length, err = strconv.Atoi(value); err != nil || length < 0 || length > bodyLimit {
				return response{}, fmt.Errorf("bad Content-Length: %.80q", value)
			}
		case "connection":
			answer.last = strings.EqualFold(value, "close")
		case "date":
			answer.date, _ = instant.ParseHTTP(value) // the zero time when it is not one
		case "transfer-encoding":
			return response{}, fmt.Errorf("unsupported Transfer-Encoding: %.80q", value)
		}
	}
	if length < 0 && !answer.last {
		return response{}, errors.New("a response without Content-Length")
	}
	if length < 0 {
		answer.body, err = io.ReadAll(io.LimitReader(c.reader, bodyLimit))
	} else {
		answer.body = make([]byte, length)
		_, err = io.ReadFull(c.reader, answer.body)
	}
	if err != nil {
		return response{}, fmt.Errorf("read the body: %w", err)
	}
	return answer, nil
}

// line reads one header line of at most the reader's buffer (4 KiB).
func (c *connection) line() (string, error) {
	line, err := c.reader.ReadSlice('\n')
	if err != nil {
		return "", fmt.Errorf("read the header: %w", err)
	}
	return strings.TrimRight(string(line), "\r\n"), nil
}
