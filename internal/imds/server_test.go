package imds

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// ttlConn records the order of SetTTL calls and writes.
type ttlConn struct {
	net.Conn
	events []string
	refuse error
}

func (c *ttlConn) SetTTL(ttl uint8) error {
	c.events = append(c.events, fmt.Sprint("ttl ", ttl))
	return c.refuse
}

func (c *ttlConn) Write(p []byte) (int, error) {
	line, _, _ := strings.Cut(string(p), "\r\n")
	c.events = append(c.events, line)
	return c.Conn.Write(p)
}

func writeFile(t testing.TB, path, content string) {
	t.Helper()
	if err := os.WriteFile(path+".new", []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

func serverOn(t testing.TB, content string) (*Server, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "metadata.json")
	writeFile(t, path, content)
	return NewServer(path), path
}

const (
	putToken = "PUT /latest/api/token HTTP/1.1\r\nHost: x\r\nX-aws-ec2-metadata-token-ttl-seconds: 60\r\n\r\n"
	getRoot  = "GET / HTTP/1.1\r\nHost: x\r\n\r\n"
)

func TestHopLimitIsOfTheTokenAlone(t *testing.T) {
	server, _ := serverOn(t, strings.Replace(fixture, `"version":1`, `"version":1,"hop_limit":2`, 1))
	here, there := net.Pipe()
	conn, done := &ttlConn{Conn: there}, make(chan struct{})
	go func() { server.ServeConn(conn); close(done) }()
	reader := bufio.NewReader(here)
	for _, raw := range []string{putToken, putToken, getRoot, getRoot, putToken} {
		io.WriteString(here, raw)
		res, err := http.ReadResponse(reader, nil)
		if err != nil {
			t.Fatal(err)
		}
		io.Copy(io.Discard, res.Body)
	}
	here.Close()
	<-done
	want := []string{
		"ttl 2", "HTTP/1.1 200 OK", "HTTP/1.1 200 OK", "ttl 64", "HTTP/1.1 401 Unauthorized",
		"HTTP/1.1 401 Unauthorized", "ttl 2", "HTTP/1.1 200 OK",
	}
	if !slices.Equal(conn.events, want) {
		t.Errorf("got  %q\nwant %q", conn.events, want)
	}
}

func TestNoAnswerWithAWrongHopLimit(t *testing.T) {
	server, _ := serverOn(t, fixture)
	here, there := net.Pipe()
	conn, done := &ttlConn{Conn: there, refuse: errors.New("no")}, make(chan struct{})
	go func() { server.ServeConn(conn); close(done) }()
	io.WriteString(here, putToken)
	if n, err := here.Read(make([]byte, 1)); n > 0 || err != io.EOF {
		t.Errorf("read %d bytes, error %v", n, err)
	}
	<-done
}

// everything is all that the service sends until it closes the connection.
func everything(t *testing.T, server *Server) string {
	t.Helper()
	here, there := net.Pipe()
	go server.ServeConn(there)
	defer here.Close()
	if _, err := io.WriteString(here, putToken); err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(here)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestFaults(t *testing.T) {
	server, path := serverOn(t, strings.Replace(fixture, `"version":1`, `"version":1,"fault_status":503`, 1))
	fetch := func() (string, time.Duration) {
		here, there := net.Pipe()
		go server.ServeConn(there)
		defer here.Close()
		started := time.Now()
		io.WriteString(here, putToken)
		line, err := bufio.NewReader(here).ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(line), time.Since(started)
	}
	if line, _ := fetch(); line != "HTTP/1.1 503 Service Unavailable" {
		t.Errorf("with a fault: %s", line)
	}
	writeFile(t, path, strings.Replace(fixture, `"version":1`, `"version":1,"fault_delay_ms":120`, 1))
	if line, took := fetch(); line != "HTTP/1.1 200 OK" || took < 120*time.Millisecond {
		t.Errorf("late: %s after %s", line, took)
	}
	if server.Refuses() {
		t.Error("it is late, and does not refuse")
	}
	for fault, want := range map[string]string{"truncated": "HTTP/1.1 200 OK", "garbage": "\x00\x16\x03 neither HTTP"} {
		writeFile(t, path, strings.Replace(fixture, `"version":1`, `"version":1,"fault_answer":"`+fault+`"`, 1))
		if line, _ := fetch(); line != want {
			t.Errorf("%s: %q", fault, line)
		}
		whole := everything(t, server)
		_, body, _ := strings.Cut(whole, "\r\n\r\n")
		if fault == "truncated" && len(body) != 28 { // of the 56 of a token
			t.Errorf("truncated: %q", whole)
		}
	}
	writeFile(t, path, strings.Replace(fixture, `"version":1`, `"version":1,"fault_answer":"refused"`, 1))
	if !server.Refuses() || everything(t, server) != "" {
		t.Error("not refused")
	}
	writeFile(t, path, fixture)
	if line, _ := fetch(); line != "HTTP/1.1 200 OK" {
		t.Errorf("fault gone: %s", line)
	}
	os.Remove(path)
	if line, _ := fetch(); line != "HTTP/1.1 500 Internal Server Error" {
		t.Errorf("file gone: %s", line)
	}
}

// TestManyConnectionsSeeTheFileChange asks on many connections while the file is replaced.
func TestManyConnectionsSeeTheFileChange(t *testing.T) {
	optional := strings.Replace(fixture, `"required"`, `"optional"`, 1)
	content := func(id string) string { return strings.Replace(optional, `"ami-1"`, `"`+id+`"`, 1) }
	server, path := serverOn(t, content("ami-0"))
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go server.ServeConn(conn)
		}
	}()
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 20}}
	fetch := func() string {
		res, err := client.Get("http://" + listener.Addr().String() + "/latest/meta-data/ami-id")
		if err != nil {
			t.Error(err)
			return ""
		}
		defer res.Body.Close()
		body, _ := io.ReadAll(res.Body)
		return string(body)
	}
	var readers sync.WaitGroup
	for range 20 {
		readers.Add(1)
		go func() {
			defer readers.Done()
			for range 50 {
				if got := fetch(); !strings.HasPrefix(got, "ami-") {
					t.Errorf("got %q", got)
				}
			}
		}()
	}
	for i := range 50 {
		id := fmt.Sprint("ami-", i)
		writeFile(t, path, content(id))
		if got := fetch(); got != id { // what was renamed before the request is what it sees
			t.Errorf("got %q after writing %q", got, id)
		}
	}
	readers.Wait()
}

// BenchmarkRequest is one request of a kept-alive connection, the transport left out.
func BenchmarkRequest(b *testing.B) {
	server, _ := serverOn(b, strings.Replace(fixture, `"required"`, `"optional"`, 1))
	request := strings.NewReader("")
	c := newConnection(request, io.Discard)
	b.ReportAllocs()
	for b.Loop() {
		request.Reset("GET /latest/meta-data/ami-id HTTP/1.1\r\nHost: x\r\nUser-Agent: y\r\n\r\n")
		c.in.Reset(request)
		if err := c.serve(server.answer); err != nil {
			b.Fatal(err)
		}
	}
}
