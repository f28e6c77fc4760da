package dhcp

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"
)

// A server answers the messages it is sent by its script, one line for each; it is silent when that is over.
type server struct {
	mutex  sync.Mutex
	script []line
	deaf   bool     // to whoever has an address, which takes nothing of the script
	errors []error  // of Send, before the script
	kinds  []byte   // of the messages
	asked  []string // how: raw, unicast, broadcast; with the current address if there is one
	xids   map[uint32]bool
}

type line func(xid uint32) [][]byte

func silent(uint32) [][]byte { return nil }

func answer(kind byte, ip [4]byte, extra ...byte) line {
	return func(xid uint32) [][]byte {
		return [][]byte{reply(xid, mac, ip, append([]byte{53, 1, kind, 54, 4, 10, 0, 0, 1}, extra...)...)}
	}
}

// A wire is one link to the server.
type wire struct {
	server  *server
	how     string
	packets chan []byte
	wake    chan struct{}
	closed  chan struct{}
}

func (s *server) open(how string) *wire {
	return &wire{s, how, make(chan []byte, 100), make(chan struct{}, 1), make(chan struct{})}
}

func (w *wire) Send(bootp []byte) error {
	s := w.server
	s.mutex.Lock()
	defer s.mutex.Unlock()
	if len(s.errors) > 0 {
		err := s.errors[0]
		s.errors = s.errors[1:]
		return err
	}
	xid := binary.BigEndian.Uint32(bootp[4:])
	s.kinds = append(s.kinds, bootp[fixed+2])
	how := w.how
	if current := [4]byte(bootp[12:]); current != [4]byte{} {
		how += " from " + Dotted(current)
	}
	s.asked = append(s.asked, how)
	if s.xids == nil {
		s.xids = map[uint32]bool{}
	}
	s.xids[xid] = true
	if len(s.script) > 0 && !(s.deaf && w.how != "raw") {
		for _, packet := range s.script[0](xid) {
			w.packets <- packet
		}
		s.script = s.script[1:]
	}
	return nil
}

func (w *wire) Receive(buffer []byte, until time.Time) (int, error) {
	select {
	case packet := <-w.packets:
		return copy(buffer, packet), nil
	case <-w.wake:
		return 0, ErrInterrupted
	case <-w.closed:
		return 0, os.ErrClosed
	case <-time.After(time.Until(until)):
		return 0, ErrTimeout
	}
}

func (w *wire) Interrupt() { w.wake <- struct{}{} }

func (w *wire) Close() error {
	select {
	case <-w.closed:
	default:
		close(w.closed)
	}
	return nil
}

var (
	home = [4]byte{10, 0, 0, 5}
	mask = []byte{1, 4, 255, 255, 255, 0}
	// hour is a lease of an hour.
	hour = append(bytes.Clone(mask), 51, 4, 0, 0, 14, 16)
)

func clientOf(s *server) *Client {
	c := NewClient(Hooks{
		MAC: mac,
		Raw: func() (Link, error) { return s.open("raw"), nil },
		UDP: func(to [4]byte) (Link, error) {
			if to == everybody {
				return s.open("broadcast"), nil
			}
			return s.open("unicast"), nil
		},
	})
	c.limit = 250 * time.Millisecond
	return c
}

func TestObtain(t *testing.T) {
	other := [6]byte{2, 0, 0, 9, 9, 9}
	offered, given := answer(offer, home), answer(ack, home, mask...)
	noise := func(xid uint32) [][]byte {
		return [][]byte{
			{1, 2, 3}, reply(xid+1, mac, [4]byte{9, 9, 9, 9}, 53, 1, offer), reply(xid, other, [4]byte{8, 8, 8, 8}, 53, 1, offer),
			reply(xid, mac, [4]byte{7, 7, 7, 7}, 53, 1, ack), reply(xid, mac, home, 53, 1, offer, 54, 4, 10, 0, 0, 1),
		}
	}
	for _, test := range []struct {
		name   string
		script []line
		errors []error
		kinds  []byte
		err    error
	}{
		{name: "at once", script: []line{offered, given}, kinds: []byte{1, 3}},
		{name: "first DISCOVER lost", script: []line{silent, offered, given}, kinds: []byte{1, 1, 3}},
		{name: "first REQUEST lost", script: []line{offered, silent, given}, kinds: []byte{1, 3, 3}},
		{name: "noise", script: []line{noise, given}, kinds: []byte{1, 3}},
		{name: "NAK", script: []line{offered, answer(nak, home)}, kinds: []byte{1, 3}, err: errRefused},
		{name: "link not up", errors: []error{syscall.ENETDOWN}, script: []line{offered, given}, kinds: []byte{1, 3}},
		{name: "link gone", errors: []error{syscall.ENXIO}, err: syscall.ENXIO},
		// Within its limit a request goes out twice; then that server counts as gone.
		{name: "the server dies", script: []line{offered, silent, silent, offered, given}, kinds: []byte{1, 3, 3, 1, 3}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s := &server{script: test.script, errors: test.errors}
			lease, _, err := clientOf(s).obtain()
			if !errors.Is(err, test.err) {
				t.Fatalf("lease %+v, error %v", lease, err)
			}
			if test.err == nil && lease.IP != home {
				t.Fatalf("lease %+v", lease)
			}
			if !bytes.Equal(s.kinds, test.kinds) {
				t.Fatalf("sent %v, want %v", s.kinds, test.kinds)
			}
			if len(s.xids) > 1 {
				t.Fatalf("the xid changed: %v", s.xids)
			}
		})
	}
}

func TestUnusableLeases(t *testing.T) {
	for name, lease := range map[string]Lease{
		"no netmask":      {IP: home},
		"no address":      {Mask: [4]byte{255, 255, 255, 0}},
		"a mask of holes": {IP: home, Mask: [4]byte{255, 0, 255, 0}},
	} {
		if got, err := lease.usable(); err == nil {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

func TestTimesOfALease(t *testing.T) {
	base := Lease{IP: home, Mask: [4]byte{255, 255, 255, 0}}
	for _, test := range []struct{ duration, t1, t2, want1, want2 time.Duration }{
		{duration: 0, t1: 5, t2: 6},
		{duration: time.Hour, want1: 30 * time.Minute, want2: 3150 * time.Second},
		{duration: time.Hour, t1: time.Minute, t2: 2 * time.Minute, want1: time.Minute, want2: 2 * time.Minute},
		{duration: time.Hour, t1: 2 * time.Hour, t2: 3 * time.Hour, want1: 30 * time.Minute, want2: 3150 * time.Second},
		{duration: time.Hour, t1: time.Minute, t2: time.Second, want1: 30 * time.Minute, want2: 3150 * time.Second},
	} {
		lease := base
		lease.Duration, lease.T1, lease.T2 = test.duration, test.t1, test.t2
		if got, err := lease.usable(); err != nil || got.T1 != test.want1 || got.T2 != test.want2 {
			t.Errorf("%+v: got %s and %s, %v", test, got.T1, got.T2, err)
		}
	}
	lease, _ := Lease{IP: base.IP, Mask: base.Mask, Duration: time.Hour}.usable()
	for _, test := range []struct{ age, want time.Duration }{
		{0, 30 * time.Minute},
		{30 * time.Minute, 675 * time.Second},   // half of what is left until T2
		{3100 * time.Second, 50 * time.Second},  // until T2
		{3150 * time.Second, 225 * time.Second}, // half of what is left
		{3500 * time.Second, time.Minute},
		{3590 * time.Second, 10 * time.Second},
		{time.Hour, 0},
		{25 * time.Hour, 0},
	} {
		if got := lease.rest(test.age); got != test.want {
			t.Errorf("at %s: %s, want %s", test.age, got, test.want)
		}
	}
}

// A life is a Client on a clock of its own: waiting for a renewal takes no time, messages take theirs.
type life struct {
	*Client
	leases   chan Lease
	troubles chan error
	ended    chan struct{}
}

func live(t *testing.T, s *server) *life {
	t.Helper()
	c := clientOf(s)
	l := &life{c, make(chan Lease, 10), make(chan error, 10), make(chan struct{})}
	c.hooks.OnLease = func(lease Lease) error { l.leases <- lease; return nil }
	c.hooks.OnTrouble = func(err error) { l.troubles <- err }
	var skipped time.Duration
	started := time.Now()
	c.now = func() time.Time { return time.Now().Add(skipped) }
	c.after = func(wait time.Duration) <-chan time.Time {
		if s.silentNow() && time.Since(started) > time.Second {
			return nil // the story is over
		}
		skipped += wait
		over := make(chan time.Time, 1)
		over <- time.Time{}
		return over
	}
	go func() {
		c.Run()
		close(l.ended)
	}()
	t.Cleanup(func() {
		c.Close()
		c.Close() // does no harm
		select {
		case <-l.ended:
		case <-time.After(10 * time.Second):
			t.Error("Run did not return after Close")
		}
	})
	return l
}

func (s *server) silentNow() bool {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	return len(s.script) == 0
}

// messages returns how the first n messages were sent, when there were so many.
func (s *server) messages(t *testing.T, n int) []string {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		s.mutex.Lock()
		if len(s.asked) >= n {
			defer s.mutex.Unlock()
			return s.asked[:n]
		}
		s.mutex.Unlock()
	}
	t.Fatalf("only %q", s.asked)
	return nil
}

func (l *life) lease(t *testing.T) Lease {
	t.Helper()
	select {
	case lease := <-l.leases:
		return lease
	case <-time.After(20 * time.Second):
		t.Fatal("no lease")
		return Lease{}
	}
}

func equal(t *testing.T, got, want []string) {
	t.Helper()
	for i := range want {
		if got[i] != want[i] {
			t.Fatalf("message %d was sent %q, want %q; all: %q", i, got[i], want[i], got)
		}
	}
}

const (
	unicast   = "unicast from 10.0.0.5"
	broadcast = "broadcast from 10.0.0.5"
)

func TestALeaseIsRenewedByItsServer(t *testing.T) {
	t.Parallel()
	given := answer(ack, home, hour...)
	s := &server{script: []line{answer(offer, home), given, given, given, given}}
	l := live(t, s)
	equal(t, s.messages(t, 5), []string{"raw", "raw", unicast, unicast, unicast})
	l.lease(t)
	if len(l.leases) != 0 {
		t.Error("a lease that did not change was told of again")
	}
}

func TestARenewalThatChangesSomethingIsToldOf(t *testing.T) {
	t.Parallel()
	s := &server{script: []line{
		answer(offer, home), answer(ack, home, hour...), answer(ack, home, append(bytes.Clone(hour), 6, 4, 1, 1, 1, 1)...),
	}}
	l := live(t, s)
	if first, second := l.lease(t), l.lease(t); len(first.DNS) != 0 || len(second.DNS) != 1 || second.IP != home {
		t.Fatalf("%+v, then %+v", first, second)
	}
}

func TestAnotherServerIsAskedAndThenAll(t *testing.T) {
	t.Parallel()
	given := answer(ack, home, hour...)
	s := &server{deaf: true, script: []line{answer(offer, home), given, answer(offer, home), given}}
	l := live(t, s)
	l.lease(t)
	// It ends; the client begins again, and the new lease is told of.
	if again := l.lease(t); again.IP != home {
		t.Fatalf("got %+v", again)
	}
	s.mutex.Lock()
	phases := slices.Compact(slices.Clone(s.asked))
	s.mutex.Unlock()
	equal(t, phases, []string{"raw", unicast, broadcast, "raw"})
	if err := <-l.troubles; !errors.Is(err, ErrTimeout) {
		t.Fatalf("got %v", err)
	}
}

func TestARefusedLeaseIsReplaced(t *testing.T) {
	t.Parallel()
	next := [4]byte{10, 0, 0, 6}
	s := &server{script: []line{
		answer(offer, home), answer(ack, home, hour...), answer(nak, [4]byte{}), answer(offer, next), answer(ack, next, hour...),
	}}
	l := live(t, s)
	if first, second := l.lease(t), l.lease(t); first.IP != home || second.IP != next {
		t.Fatalf("%v, then %v", first.IP, second.IP)
	}
	equal(t, s.messages(t, 5), []string{"raw", "raw", unicast, "raw", "raw"})
	if err := <-l.troubles; !errors.Is(err, errRefused) {
		t.Fatalf("got %v", err)
	}
}

func TestCheckAsksAllAndTellsOfTheLease(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		then []line
		want []string
	}{
		"it holds": {[]line{answer(ack, home, mask...)}, []string{"raw", "raw", broadcast}},
		"nobody knows of it": {
			[]line{silent, silent, answer(offer, home), answer(ack, home, mask...)},
			[]string{"raw", "raw", broadcast, broadcast, "raw", "raw"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			// Without an end: nothing but the check makes the client ask.
			s := &server{script: append([]line{answer(offer, home), answer(ack, home, mask...)}, test.then...)}
			l := live(t, s)
			l.lease(t)
			l.Check()
			l.lease(t)
			equal(t, s.messages(t, len(test.want)), test.want)
		})
	}
}

func TestCheckRepeatsAtOnceWhatWasLostWithoutALink(t *testing.T) {
	t.Parallel()
	s := &server{}
	c := clientOf(s)
	leases := make(chan Lease, 1)
	c.hooks.OnLease = func(lease Lease) error { leases <- lease; return nil }
	go c.Run()
	defer c.Close()
	s.messages(t, 6) // the next one would come after 3.2 s, and the one after that after 4 s
	s.mutex.Lock()
	s.script = []line{answer(offer, home), answer(ack, home, mask...)}
	s.mutex.Unlock()
	started := time.Now()
	c.Check()
	<-leases
	if took := time.Since(started); took > 2*time.Second {
		t.Fatalf("took %s", took)
	}
}
