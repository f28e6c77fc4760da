package inittest

import (
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"

	"instantenv/init/internal/imds"
)

// A Service is a metadata service whose items can change; each item is the queue of its answers, the last of which
// stays. An answer of three digits is a status.
type Service struct {
	mutex sync.Mutex
	items map[string][]string
	asked map[string]int
}

func (s *Service) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	s.asked[r.URL.Path]++
	if r.URL.Path == "/latest/api/token" && len(s.items[r.URL.Path]) == 0 {
		fmt.Fprint(w, "token")
		return
	}
	answers := s.items[r.URL.Path]
	if len(answers) == 0 {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	if len(answers) > 1 {
		s.items[r.URL.Path] = answers[1:]
	}
	var status int
	if _, err := fmt.Sscanf(answers[0], "%3d", &status); err == nil && len(answers[0]) == 3 {
		w.WriteHeader(status)
		return
	}
	fmt.Fprint(w, answers[0])
}

// Set replaces an item's answers.
func (s *Service) Set(path string, answers ...string) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	s.items[path] = answers
}

// Count tells how often an item was asked for.
func (s *Service) Count(path string) int {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	return s.asked[path]
}

// Serve runs a service with these items until the test ends, and returns a client of it.
func Serve(t *testing.T, items map[string][]string) (*Service, *imds.Client) {
	t.Helper()
	s := &Service{items: items, asked: map[string]int{}}
	if s.items == nil {
		s.items = map[string][]string{}
	}
	server := httptest.NewServer(s)
	t.Cleanup(server.Close)
	address, ok := server.Listener.Addr().(*net.TCPAddr)
	if !ok {
		t.Fatal("not TCP")
	}
	client := imds.New(imds.Endpoint{IP: [4]byte(address.IP.To4()), Port: address.Port})
	t.Cleanup(client.Close)
	return s, client
}
