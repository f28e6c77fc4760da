package main

import (
	"container/list"
	"errors"
	"io"
	"log"
	"net"
	"sync"
	"syscall"
	"time"
)

// What one guest can have of what all guests share. Each bound is the guest's own: whoever comes to it loses what it
// has used least recently, and nobody else notices.
const (
	maxFlows         = 8192 // tracked connections that the guest began
	maxFragments     = 256  // packets of which later fragments are awaited
	maxServiceConns  = 64   // TCP connections to IMDS and DNS
	maxDNSQueries    = 64   // on their way to the host's resolvers
	maxHandshakes    = 128  // to services, and as many to the internet; the guest repeats the SYNs beyond
	maxPerDescriptor = 256  // of each kind that takes a descriptor of netd's
)

// descriptorShare returns how many descriptors one guest may have of each kind: UDP flows, TCP connections to the
// internet, DNS queries. Four of these kinds are a quarter of all, so one guest leaves enough for the others.
func descriptorShare() int {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return maxPerDescriptor / 4
	}
	return int(min(maxPerDescriptor, max(4, limit.Cur/16)))
}

// slots are what a guest has open of one kind, the least recently used first.
type slots struct {
	most int
	mu   sync.Mutex
	open list.List // of io.Closer
}

func newSlots(most int) *slots { return &slots{most: most} }

// slot is one place among slots.
type slot struct {
	of      *slots
	element *list.Element
}

// add takes a place for c, and closes the one that was used least recently when there is none.
func (s *slots) add(c io.Closer) slot {
	s.mu.Lock()
	var oldest io.Closer
	if s.open.Len() >= s.most {
		oldest = s.open.Remove(s.open.Front()).(io.Closer)
	}
	taken := slot{s, s.open.PushBack(c)}
	s.mu.Unlock()
	if oldest != nil {
		oldest.Close()
	}
	return taken
}

// use makes this the most recently used.
func (s slot) use() {
	s.of.mu.Lock()
	defer s.of.mu.Unlock()
	s.of.open.MoveToBack(s.element) // does nothing when it is no longer in the list
}

// release gives the place back; it may have been taken away before.
func (s slot) release() {
	s.of.mu.Lock()
	defer s.of.mu.Unlock()
	s.of.open.Remove(s.element) // does nothing when it is no longer in the list
}

// semaphore counts what goes on at once.
type semaphore chan struct{}

func (s semaphore) tryAcquire() bool {
	select {
	case s <- struct{}{}:
		return true
	default:
		return false
	}
}

func (s semaphore) release() { <-s }

// acceptPause is how long an accept loop rests after an error that passes: no descriptors, no memory.
const acceptPause = 50 * time.Millisecond

// acceptLoop hands each connection to handle until the listener is closed. Every other error passes: a loop that
// ended at it would leave the listener there, and nobody behind it.
func acceptLoop[C net.Conn](what string, accept func() (C, error), handle func(C)) {
	var logged time.Time
	for {
		conn, err := accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			if time.Since(logged) > time.Second {
				logged = time.Now()
				log.Printf("%s: %v", what, err)
			}
			time.Sleep(acceptPause)
			continue
		}
		handle(conn)
	}
}
