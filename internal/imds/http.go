package imds

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"strconv"
	"strings"
	"time"
)

const (
	maxHeadBytes = 16 << 10 // request line and headers together
	maxBodyBytes = 64 << 10 // no request here needs a body; a small one is read and dropped
)

// request is the part of an HTTP/1.x request that the service looks at.
type request struct {
	method  string
	path    string            // decoded, without query
	headers map[string]string // lower-case names; the first of repeated ones
	close   bool              // the connection ends after the answer
	http10  bool
}

// response is an answer of the service; the connection adds the headers that every answer has.
type response struct {
	status      int
	contentType string
	body        []byte
	headers     []string // whole lines, without line ends
	modified    time.Time
	close       bool
	ttl         uint8  // the IP time-to-live of its packets; 0 is defaultTTL
	broken      string // how the answer is corrupted, one of the values of fault_answer
}

// protocolError is a request that cannot be understood; after its answer the connection is closed,
// because where the next request starts is unknown.
type protocolError struct{ status int }

func (e protocolError) Error() string { return statusText(e.status) }

func statusText(status int) string {
	switch status {
	case 200:
		return "OK"
	case 400:
		return "Bad Request"
	case 401:
		return "Unauthorized"
	case 403:
		return "Forbidden"
	case 404:
		return "Not Found"
	case 405:
		return "Not Allowed"
	case 413:
		return "Request Entity Too Large"
	case 429:
		return "Too Many Requests"
	case 431:
		return "Request Header Fields Too Large"
	case 501:
		return "Not Implemented"
	case 503:
		return "Service Unavailable"
	case 505:
		return "HTTP Version Not Supported"
	}
	return "Internal Server Error"
}

// connection reads requests and writes answers, in order, until the peer closes.
type connection struct {
	in     *bufio.Reader
	out    io.Writer
	now    func() time.Time
	setTTL func(uint8) error // nil where the transport knows none
	ttl    uint8             // what was set last
}

func newConnection(in io.Reader, out io.Writer) *connection {
	return &connection{in: bufio.NewReaderSize(in, maxHeadBytes), out: out, now: time.Now}
}

// serve answers until end of input (nil) or until reading or writing fails.
func (c *connection) serve(answer func(*request) response) error {
	for {
		req, err := c.readRequest()
		if err == io.EOF {
			return nil
		}
		var broken protocolError
		if errors.As(err, &broken) {
			return c.write(&request{method: "GET", close: true}, errorPage(broken.status))
		}
		if err != nil {
			return err
		}
		res := answer(req)
		if err := c.write(req, res); err != nil {
			return err
		}
		if req.close || res.close {
			return nil
		}
	}
}

// readRequest returns io.EOF when the peer closed between requests.
func (c *connection) readRequest() (*request, error) {
	budget := maxHeadBytes
	line, err := c.readLine(&budget)
	for err == nil && line == "" { // RFC 9112, 2.2: ignore empty lines before a request
		line, err = c.readLine(&budget)
	}
	if err != nil {
		return nil, err
	}
	req, err := parseRequestLine(line)
	if err != nil {
		return nil, err
	}
	for {
		line, err := c.readLine(&budget)
		if err == io.EOF {
			return nil, io.ErrUnexpectedEOF
		}
		if err != nil {
			return nil, err
		}
		if line == "" {
			break
		}
		name, value, found := strings.Cut(line, ":")
		if !found || !validName(name) {
			return nil, protocolError{400}
		}
		if name = strings.ToLower(name); req.headers[name] == "" {
			req.headers[name] = strings.TrimSpace(value)
		}
	}
	return req, c.finish(req)
}

// finish checks what depends on several headers, and drops a body.
func (c *connection) finish(req *request) error {
	connectionHeader := strings.ToLower(req.headers["connection"])
	req.close = strings.Contains(connectionHeader, "close") ||
		req.http10 && !strings.Contains(connectionHeader, "keep-alive")
	if _, ok := req.headers["host"]; !ok && !req.http10 {
		return protocolError{400}
	}
	if req.headers["transfer-encoding"] != "" {
		return protocolError{501}
	}
	text := req.headers["content-length"]
	if text == "" {
		return nil
	}
	length, err := strconv.ParseUint(text, 10, 63)
	if err != nil {
		return protocolError{400}
	}
	if length > maxBodyBytes {
		return protocolError{413}
	}
	if _, err := c.in.Discard(int(length)); err != nil {
		return io.ErrUnexpectedEOF
	}
	return nil
}

// readLine reads up to a line feed and strips the line end. EOF in the middle of a line is an error.
func (c *connection) readLine(budget *int) (string, error) {
	line, err := c.in.ReadSlice('\n')
	*budget -= len(line)
	if err == bufio.ErrBufferFull || *budget < 0 {
		return "", protocolError{431}
	}
	if err != nil {
		if err == io.EOF && len(line) > 0 {
			return "", io.ErrUnexpectedEOF
		}
		return "", err
	}
	return string(bytes.TrimSuffix(line[:len(line)-1], []byte{'\r'})), nil
}

func parseRequestLine(line string) (*request, error) {
	parts := strings.Split(line, " ")
	if len(parts) != 3 || !validName(parts[0]) {
		return nil, protocolError{400}
	}
	req := &request{method: parts[0], headers: map[string]string{}}
	switch parts[2] {
	case "HTTP/1.1":
	case "HTTP/1.0":
		req.http10 = true
	default:
		if strings.HasPrefix(parts[2], "HTTP/") {
			return nil, protocolError{505}
		}
		return nil, protocolError{400}
	}
	target := parts[1]
	if rest, ok := strings.CutPrefix(target, "http://"); ok { // absolute form, as through a proxy
		_, path, _ := strings.Cut(rest, "/")
		target = "/" + path
	}
	target, _, _ = strings.Cut(target, "?")
	path, ok := unescape(target)
	if !ok || path == "" || path[0] != '/' {
		return nil, protocolError{400}
	}
	req.path = path
	return req, nil
}

// unescape decodes %XX. net/url does the same but is a large import for one function.
func unescape(text string) (string, bool) {
	if !strings.Contains(text, "%") {
		return text, true
	}
	var out strings.Builder
	for i := 0; i < len(text); i++ {
		if text[i] != '%' {
			out.WriteByte(text[i])
			continue
		}
		if i+2 >= len(text) {
			return "", false
		}
		value, err := strconv.ParseUint(text[i+1:i+3], 16, 8)
		if err != nil {
			return "", false
		}
		out.WriteByte(byte(value))
		i += 2
	}
	return out.String(), true
}

// validName tells whether text is a token of RFC 9110, as methods and header names are.
func validName(text string) bool {
	for _, c := range []byte(text) {
		letter := c|0x20 >= 'a' && c|0x20 <= 'z'
		if !letter && (c < '0' || c > '9') && strings.IndexByte("!#$%&'*+-.^_`|~", c) < 0 {
			return false
		}
	}
	return text != ""
}

// write sends the answer in one write: one segment to the guest, not two.
func (c *connection) write(req *request, res response) error {
	if err := c.limitHops(res.ttl); err != nil {
		return err
	}
	const httpDate = "Mon, 02 Jan 2006 15:04:05 GMT"
	var out bytes.Buffer
	out.WriteString("HTTP/1.1 " + strconv.Itoa(res.status) + " " + statusText(res.status) + "\r\n")
	out.WriteString("Content-Type: " + res.contentType + "\r\nAccept-Ranges: none\r\n")
	if !res.modified.IsZero() {
		out.WriteString("Last-Modified: " + res.modified.UTC().Format(httpDate) + "\r\n")
	}
	for _, header := range res.headers {
		out.WriteString(header + "\r\n")
	}
	out.WriteString("Content-Length: " + strconv.Itoa(len(res.body)) + "\r\n")
	out.WriteString("Date: " + c.now().UTC().Format(httpDate) + "\r\nServer: EC2ws\r\n")
	if req.close || res.close {
		out.WriteString("Connection: close\r\n")
	} else if req.http10 {
		out.WriteString("Connection: keep-alive\r\n")
	}
	out.WriteString("\r\n")
	if req.method != "HEAD" {
		out.Write(res.body)
	}
	switch res.broken {
	case refused:
		return nil
	case truncated:
		out.Truncate(out.Len() - (len(res.body)+1)/2)
	case garbage:
		out.Reset()
		out.WriteString("\x00\x16\x03 neither HTTP\nnor\xff text\r\n\r\n")
	}
	_, err := c.out.Write(out.Bytes())
	return err
}

// limitHops sets how far the next packets may go.
func (c *connection) limitHops(ttl uint8) error {
	if ttl == 0 {
		ttl = defaultTTL
	}
	if c.setTTL == nil || c.ttl == ttl {
		return nil
	}
	c.ttl = ttl
	return c.setTTL(ttl)
}
