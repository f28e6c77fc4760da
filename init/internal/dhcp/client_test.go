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
	"testing/synctest"
	"time"
)

// The tests with a Client run in a bubble of synctest: its clock jumps to the next timer when every goroutine waits,
// so an hour's lease takes no time and messages go out at exact times, however slow the machine is.

// A server answers the messages it is sent by its script, one line for each; it is silent when that is over.
type server struct {
	mutex  sync.Mutex
	script []line
	deaf   bool        // to whoever has an address, which takes nothing of the script
	errors []error     // of Send, before the script
	kinds  []byte      // of the messages
	asked  []string    // how: raw, unicast, broadcast; with the current address if there is one
	times  []time.Time // of the messages
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
	s.times = append(s.times, time.Now())
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
	return NewClient(Hooks{
		MAC: mac,
		Raw: func() (Link, error) { return s.open("raw"), nil },
		UDP: func(to [4]byte) (Link, error) {
			if to == everybody {
				return s.open("broadcast"), nil
			}
			return s.open("unicast"), nil
		},
	})
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
		// Within its limit a request goes out six times; then that server counts as gone.
		{
			name:   "the server dies",
			script: slices.Concat([]line{offered}, slices.Repeat([]line{silent}, 6), []line{offered, given}),
			kinds:  []byte{1, 3, 3, 3, 3, 3, 3, 1, 3},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
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

// A life is a Client that runs, until the test ends.
type life struct {
	*Client
	leases   chan Lease
	troubles chan error
}

func live(t *testing.T, s *server) *life {
	t.Helper()
	c := clientOf(s)
	l := &life{c, make(chan Lease, 10), make(chan error, 10)}
	c.hooks.OnLease = func(lease Lease) error { l.leases <- lease; return nil }
	c.hooks.OnTrouble = func(err error) { l.troubles <- err }
	ended := make(chan struct{})
	go func() {
		c.Run()
		close(ended)
	}()
	t.Cleanup(func() {
		c.Close()
		c.Close() // does no harm
		select {
		case <-ended:
		case <-time.After(10 * time.Second):
			t.Error("Run did not return after Close")
		}
	})
	return l
}

// until lets the client run until this long after its first message, if that is still to come, and returns how all
// messages were sent, and how long after the first.
func (s *server) until(t *testing.T, end time.Duration) (asked []string, times []time.Duration) {
	t.Helper()
	synctest.Wait()
	s.mutex.Lock()
	if len(s.times) == 0 {
		t.Fatal("the client sent nothing")
	}
	first := s.times[0]
	s.mutex.Unlock()
	time.Sleep(time.Until(first.Add(end)))
	synctest.Wait()
	s.mutex.Lock()
	defer s.mutex.Unlock()
	for _, at := range s.times {
		times = append(times, at.Sub(first))
	}
	return slices.Clone(s.asked), times
}

func (l *life) lease(t *testing.T) Lease {
	t.Helper()
	select {
	case lease := <-l.leases:
		return lease
	case <-time.After(2 * time.Hour):
		t.Fatal("no lease")
		return Lease{}
	}
}

func equal[T comparable](t *testing.T, what string, got, want []T) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Fatalf("%s of the messages: %v, want %v", what, got, want)
	}
}

const (
	unicast   = "unicast from 10.0.0.5"
	broadcast = "broadcast from 10.0.0.5"
)

func TestALeaseIsRenewedByItsServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		given := answer(ack, home, hour...)
		s := &server{script: []line{answer(offer, home), given, given, given, given}}
		l := live(t, s)
		asked, times := s.until(t, 100*time.Minute)
		equal(t, "kinds", asked, []string{"raw", "raw", unicast, unicast, unicast})
		equal(t, "times", times, []time.Duration{0, 0, 30 * time.Minute, 60 * time.Minute, 90 * time.Minute})
		l.lease(t)
		if len(l.leases) != 0 {
			t.Error("a lease that did not change was reported again")
		}
	})
}

func TestARenewalThatChangesSomethingIsToldOf(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &server{script: []line{
			answer(offer, home), answer(ack, home, hour...), answer(ack, home, append(bytes.Clone(hour), 6, 4, 1, 1, 1, 1)...),
		}}
		l := live(t, s)
		if first, second := l.lease(t), l.lease(t); len(first.DNS) != 0 || len(second.DNS) != 1 || second.IP != home {
			t.Fatalf("%+v, then %+v", first, second)
		}
	})
}

func TestAnotherServerIsAskedAndThenAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		given := answer(ack, home, hour...)
		s := &server{deaf: true, script: []line{answer(offer, home), given, answer(offer, home), given}}
		l := live(t, s)
		l.lease(t)
		// It ends; the client begins again, and reports the new lease.
		if again := l.lease(t); again.IP != home {
			t.Fatalf("got %+v", again)
		}
		asked, times := s.until(t, 0)
		begin := func(how string) time.Duration { return times[slices.Index(asked, how)] }
		equal(t, "kinds", slices.Compact(slices.Clone(asked)), []string{"raw", unicast, broadcast, "raw"})
		if t1, t2 := begin(unicast), begin(broadcast); t1 != 30*time.Minute || t2 != 3150*time.Second {
			t.Errorf("its server was asked from %s on, all from %s on", t1, t2)
		}
		if err := <-l.troubles; !errors.Is(err, ErrTimeout) {
			t.Fatalf("got %v", err)
		}
	})
}

func TestARefusedLeaseIsReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		next := [4]byte{10, 0, 0, 6}
		s := &server{script: []line{
			answer(offer, home), answer(ack, home, hour...), answer(nak, [4]byte{}), answer(offer, next), answer(ack, next, hour...),
		}}
		l := live(t, s)
		if first, second := l.lease(t), l.lease(t); first.IP != home || second.IP != next {
			t.Fatalf("%v, then %v", first.IP, second.IP)
		}
		asked, times := s.until(t, 31*time.Minute)
		equal(t, "kinds", asked, []string{"raw", "raw", unicast, "raw", "raw"})
		again := 30*time.Minute + firstPause
		equal(t, "times", times, []time.Duration{0, 0, 30 * time.Minute, again, again})
		if err := <-l.troubles; !errors.Is(err, errRefused) {
			t.Fatalf("got %v", err)
		}
	})
}

// repeats are when a message goes out that nobody answers within answerLimit, and when the last answer is waited for.
var repeats = []time.Duration{
	0, 100 * time.Millisecond, 300 * time.Millisecond, 700 * time.Millisecond, 1500 * time.Millisecond,
	3100 * time.Millisecond, 6300 * time.Millisecond,
}

func TestCheckAsksAllAndTellsOfTheLease(t *testing.T) {
	again := repeats[6] + firstPause
	for name, test := range map[string]struct {
		then  []line
		asked []string
		times []time.Duration
	}{
		"it holds": {[]line{answer(ack, home, mask...)}, []string{broadcast}, repeats[:1]},
		"nobody knows of it": {
			append(slices.Repeat([]line{silent}, 6), answer(offer, home), answer(ack, home, mask...)),
			append(slices.Repeat([]string{broadcast}, 6), "raw", "raw"),
			append(slices.Clone(repeats[:6]), again, again),
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				// Without an end: nothing but the check makes the client ask.
				s := &server{script: append([]line{answer(offer, home), answer(ack, home, mask...)}, test.then...)}
				l := live(t, s)
				l.lease(t)
				synctest.Wait() // until it keeps the lease
				l.Check()
				l.lease(t)
				asked, times := s.until(t, 24*time.Hour)
				equal(t, "kinds", asked, append([]string{"raw", "raw"}, test.asked...))
				equal(t, "times", times, append([]time.Duration{0, 0}, test.times...))
			})
		})
	}
}

func TestCheckRepeatsAtOnceWhatWasLostWithoutALink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &server{}
		l := live(t, s)
		const check = 3500 * time.Millisecond // the next message would go out after 6.3 s
		_, times := s.until(t, check)
		equal(t, "times", times, repeats[:6])
		s.mutex.Lock()
		s.script = []line{silent, answer(offer, home), answer(ack, home, mask...)}
		s.mutex.Unlock()
		l.Check()
		l.lease(t)
		_, times = s.until(t, time.Minute)
		equal(t, "times", times, append(slices.Clone(repeats[:6]), check, check+firstPause, check+firstPause))
	})
}
