package imds

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

func endpointOf(t *testing.T, address net.Addr) Endpoint {
	t.Helper()
	tcp, ok := address.(*net.TCPAddr)
	if !ok {
		t.Fatalf("address %v", address)
	}
	return Endpoint{[4]byte(tcp.IP.To4()), tcp.Port}
}

// service speaks IMDSv2 with tokens token-1, token-2, ...; statuses are answered to the first GETs instead.
type service struct {
	statuses    []int
	tokens      atomic.Int32
	connections atomic.Int32
}

func (s *service) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/latest/api/token" {
		if r.Method != "PUT" || r.Header.Get("X-aws-ec2-metadata-token-ttl-seconds") != "21600" {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		fmt.Fprintf(w, "token-%d", s.tokens.Add(1))
		return
	}
	if r.Header.Get("X-aws-ec2-metadata-token") != fmt.Sprintf("token-%d", s.tokens.Load()) {
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	if len(s.statuses) > 0 {
		status := s.statuses[0]
		s.statuses = s.statuses[1:]
		if status == http.StatusUnauthorized {
			s.tokens.Add(1) // every token handed out so far is void
		}
		w.WriteHeader(status)
		return
	}
	fmt.Fprint(w, "value of "+r.URL.Path)
}

func start(t *testing.T, s *service) *Client {
	t.Helper()
	server := httptest.NewUnstartedServer(s)
	server.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			s.connections.Add(1)
		}
	}
	server.Start()
	t.Cleanup(server.Close)
	return patientClient(t, endpointOf(t, server.Listener.Addr()))
}

const longEnough = time.Minute

func soon() time.Time { return time.Now().Add(longEnough) }

// patientClient connects once unless the server makes it connect again, however slow the machine is.
func patientClient(t *testing.T, endpoint Endpoint) *Client {
	t.Helper()
	client := New(endpoint)
	client.patience = longEnough
	t.Cleanup(client.Close)
	return client
}

func TestGet(t *testing.T) {
	for _, test := range []struct {
		name     string
		statuses []int
		tokens   int32 // handed out or voided in the end
		err      error
		fails    bool
	}{
		{name: "at once", tokens: 1},
		{name: "busy at first", statuses: []int{503, 500, 503}, tokens: 1},
		{name: "token refused", statuses: []int{401}, tokens: 3},
		{name: "no such item", statuses: []int{404}, tokens: 1, err: ErrNotFound, fails: true},
		{name: "turned off", statuses: []int{403}, tokens: 1, err: ErrForbidden, fails: true},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := &service{statuses: test.statuses}
			client := start(t, s)
			body, err := client.Get("/latest/user-data", soon())
			if test.fails != (err != nil) || test.err != nil && !errors.Is(err, test.err) {
				t.Fatalf("error %v, want %v", err, test.err)
			}
			if !test.fails && string(body) != "value of /latest/user-data" {
				t.Fatalf("body %q", body)
			}
			if s.tokens.Load() != test.tokens {
				t.Errorf("%d tokens, want %d", s.tokens.Load(), test.tokens)
			}
			if s.connections.Load() != 1 {
				t.Errorf("%d connections, want 1 that is kept alive", s.connections.Load())
			}
		})
	}
}

func TestGetKeepsTokenAndConnection(t *testing.T) {
	s := &service{}
	client := start(t, s)
	connects, tokens := 0, 0
	client.OnConnect, client.OnToken = func() { connects++ }, func() { tokens++ }
	for i := range 5 {
		path := fmt.Sprintf("/latest/meta-data/item-%d", i)
		if body, err := client.Get(path, soon()); err != nil || string(body) != "value of "+path {
			t.Fatalf("got %q, %v", body, err)
		}
	}
	client.Close()
	if _, err := client.Get("/latest/again", soon()); err != nil {
		t.Fatalf("after Close: %v", err)
	}
	if s.tokens.Load() != 1 || s.connections.Load() != 2 || connects != 1 || tokens != 1 {
		t.Fatalf("%d tokens, %d connections, hooks %d and %d", s.tokens.Load(), s.connections.Load(), connects, tokens)
	}
}

// scripted answers one connection after the other with raw text for each request, then closes it.
func scripted(t *testing.T, connections ...[]string) Endpoint {
	t.Helper()
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	go func() {
		for _, answers := range connections {
			connection, err := listener.Accept()
			if err != nil {
				return
			}
			reader := bufio.NewReader(connection)
			for _, answer := range answers {
				for {
					line, err := reader.ReadString('\n')
					if err != nil || strings.TrimSpace(line) == "" {
						break
					}
				}
				fmt.Fprint(connection, answer)
			}
			connection.Close()
		}
	}()
	return endpointOf(t, listener.Addr())
}

func TestGetSurvivesBadServers(t *testing.T) {
	token := "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\ntoken"
	good := "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
	for _, test := range []struct {
		name        string
		connections [][]string
	}{
		{"garbage", [][]string{{"SSH-2.0-OpenSSH_9.2\r\n"}, {token, good}}},
		{"closed at once", [][]string{{}, {token, good}}},
		{"closed between requests", [][]string{{token}, {good}}},
		{"cut body", [][]string{{token, "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nok"}, {good}}},
		{"no length", [][]string{{token, "HTTP/1.1 200 OK\r\n\r\n"}, {good}}},
		{"absurd length", [][]string{{token, "HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n"}, {good}}},
		{"negative length", [][]string{{token, "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n"}, {good}}},
		{"chunked", [][]string{{token, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"}, {good}}},
		{"endless header", [][]string{{token, "HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 10000) + "\r\n\r\n"}, {good}}},
		{"many headers", [][]string{{token, "HTTP/1.1 200 OK\r\n" + strings.Repeat("X: y\r\n", 200) + "\r\n"}, {good}}},
		{"token with a line break", [][]string{{"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\ntok\r\nX"}, {token, good}}},
		{"empty token", [][]string{{"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"}, {token, good}}},
		{"HTTP/1.0 until close", [][]string{{token, "HTTP/1.0 200 OK\r\n\r\nok"}}},
		{"Connection: close", [][]string{{"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 5\r\n\r\ntoken"}, {good}}},
	} {
		t.Run(test.name, func(t *testing.T) {
			body, err := patientClient(t, scripted(t, test.connections...)).Get("/latest/user-data", soon())
			if err != nil || string(body) != "ok" {
				t.Fatalf("got %q, %v", body, err)
			}
		})
	}
}

// The date is the latest answer's, that nothing is there included.
func TestDate(t *testing.T) {
	token := "HTTP/1.1 200 OK\r\nDate: Sat, 21 Nov 2026 18:00:00 GMT\r\nContent-Length: 5\r\n\r\ntoken"
	for _, test := range []struct {
		answer string
		want   time.Time
	}{
		{"HTTP/1.1 404 Not Found\r\ndate: Sat, 21 Nov 2026 18:00:01 GMT\r\nContent-Length: 0\r\n\r\n", time.Date(2026, 11, 21, 18, 0, 1, 0, time.UTC)},
		{"HTTP/1.1 404 Not Found\r\nDate: yesterday\r\nContent-Length: 0\r\n\r\n", time.Time{}},
		{"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", time.Time{}},
	} {
		client := patientClient(t, scripted(t, []string{token, test.answer}))
		if _, err := client.Get("/latest/x", time.Now()); !errors.Is(err, ErrNotFound) {
			t.Fatal(err)
		}
		if !client.Date().Equal(test.want) {
			t.Errorf("date %v, want %v", client.Date(), test.want)
		}
	}
}

// A service that takes its time is heard in the end, and one that drips is not listened to for ever.
func TestGetIsPatientWithASlowServer(t *testing.T) {
	const first = 20 * time.Millisecond
	s := &service{}
	var requests atomic.Int32
	slow := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if requests.Add(1) <= 3 {
			<-r.Context().Done() // slower than the client is patient
			return
		}
		s.ServeHTTP(w, r)
	}))
	slow.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			s.connections.Add(1)
		}
	}
	slow.Start()
	t.Cleanup(slow.Close)
	client := New(endpointOf(t, slow.Listener.Addr()))
	t.Cleanup(client.Close)
	client.patience = first
	if body, err := client.Get("/latest/x", soon()); err != nil || string(body) != "value of /latest/x" {
		t.Fatalf("got %q, %v", body, err)
	}
	// Each try but the last one was too short; on a slow machine there may be more of them.
	tries := s.connections.Load()
	if want := min(first<<(tries-1), patienceMost); tries < 4 || client.patience != want {
		t.Errorf("patience %v after %d tries, want %v", client.patience, tries, want)
	}
}

func TestGetEndsWithADrippingServer(t *testing.T) {
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			connection, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer connection.Close()
				for {
					if _, err := fmt.Fprint(connection, "H"); err != nil {
						return
					}
					time.Sleep(20 * time.Millisecond)
				}
			}()
		}
	}()
	client := New(endpointOf(t, listener.Addr()))
	t.Cleanup(client.Close)
	client.patience = 200 * time.Millisecond
	started := time.Now()
	if _, err := client.Get("/latest/x", started); !errors.Is(err, errTooLate) {
		t.Fatalf("error %v", err)
	}
	if took := time.Since(started); took > longEnough {
		t.Errorf("took %v", took)
	}
}

// A token that is not found says nothing about the item.
func TestGetWithoutATokenGoesOn(t *testing.T) {
	none := "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
	token := "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\ntoken"
	client := patientClient(t, scripted(t, []string{none, none, token, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"}))
	if body, err := client.Get("/latest/x", soon()); err != nil || string(body) != "ok" {
		t.Fatalf("got %q, %v", body, err)
	}
}

func FuzzResponse(f *testing.F) {
	for _, seed := range []string{
		"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nDate: Sat, 21 Nov 2026 18:00:00 GMT\r\n\r\ntoken",
		"HTTP/1.0 404 Not Found\r\n\r\nnothing", "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nto the end",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "SSH-2.0-OpenSSH_9.2\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		c := &connection{reader: bufio.NewReader(bytes.NewReader(data))}
		answer, err := c.readResponse()
		if err != nil {
			return
		}
		if answer.status < 200 || answer.status > 599 || len(answer.body) > bodyLimit || len(answer.body) > len(data) {
			t.Errorf("status %d, %d bytes of %d", answer.status, len(answer.body), len(data))
		}
	})
}

func TestGetWaitsForAServer(t *testing.T) {
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	endpoint, address := endpointOf(t, listener.Addr()), listener.Addr().String()
	listener.Close()
	if _, err := New(endpoint).Get("/latest/x", time.Now().Add(100*time.Millisecond)); err == nil {
		t.Fatal("nobody answered, yet there is no error")
	}
	late := make(chan error, 1)
	go func() {
		time.Sleep(150 * time.Millisecond)
		listener, err := net.Listen("tcp4", address)
		late <- err
		if err == nil {
			_ = http.Serve(listener, &service{})
		}
	}()
	body, err := New(endpoint).Get("/latest/x", soon())
	if failed := <-late; failed != nil {
		t.Skipf("the port was taken meanwhile: %v", failed)
	}
	if err != nil || string(body) != "value of /latest/x" {
		t.Fatalf("got %q, %v", body, err)
	}
}
