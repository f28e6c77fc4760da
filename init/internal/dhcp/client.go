// Package dhcp obtains one IPv4 lease, fast: the first packets after a link comes up are often lost, so the
// client repeats itself after 100 ms, not after the usual seconds. It does not probe the address by ARP and it
// does not renew; the caller installs the address without a lifetime.
package dhcp

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"syscall"
	"time"
)

// Pauses before a repeat, by doubling (RFC 2131, section 4.1, asks for 4 s at first; EC2 answers within 1 ms).
const (
	firstPause = 100 * time.Millisecond
	lastPause  = 4 * time.Second
)

// A Lease is what the server gave. Zero values were not given.
type Lease struct {
	IP, Mask, Router [4]byte
	DNS              [][4]byte
	MTU              int
	Hostname, Domain string
}

// A Link carries IPv4 packets to and from one Ethernet segment.
type Link interface {
	Send(packet []byte) error
	// Receive waits at most the given time and answers with ErrTimeout after it.
	Receive(buffer []byte, wait time.Duration) (int, error)
}

// ErrTimeout is a Receive without a packet, and an Obtain without a lease.
var ErrTimeout = errors.New("no answer from a DHCP server")

// Obtain asks for a lease until it has one or the deadline has passed.
func Obtain(link Link, mac [6]byte, deadline time.Time) (Lease, error) {
	ask := exchange{link: link, ours: message{kind: discover, xid: rand.Uint32(), mac: mac}, deadline: deadline}
	for {
		ask.ours.kind = discover
		offered, err := ask.run(offer)
		if err != nil {
			return Lease{}, err
		}
		ask.ours.kind, ask.ours.requested, ask.ours.server = request, offered.lease.IP, offered.server
		answer, err := ask.run(ack)
		if errors.Is(err, errRefused) {
			continue
		}
		if err != nil {
			return Lease{}, err
		}
		if answer.lease.IP == [4]byte{} || answer.lease.Mask == [4]byte{} {
			return Lease{}, fmt.Errorf("the DHCP server gave no address or no netmask: %+v", answer.lease)
		}
		return answer.lease, nil
	}
}

var errRefused = errors.New("the DHCP server refused")

type exchange struct {
	link     Link
	ours     message
	deadline time.Time
}

// run sends the message, again and again with the same xid, until a reply of the wanted kind comes.
func (e exchange) run(wanted byte) (message, error) {
	buffer := make([]byte, 2048)
	packet := e.ours.encode()
	for pause := firstPause; time.Now().Before(e.deadline); pause = min(2*pause, lastPause) {
		// A link that is not up yet answers ENETDOWN or ENOBUFS: the next try may succeed.
		if err := e.link.Send(packet); err != nil && !temporary(err) {
			return message{}, fmt.Errorf("send to the DHCP server: %w", err)
		}
		for until := time.Now().Add(pause); ; {
			wait := time.Until(until)
			if wait <= 0 {
				break
			}
			length, err := e.link.Receive(buffer, wait)
			if errors.Is(err, ErrTimeout) {
				break
			}
			if temporary(err) {
				time.Sleep(min(wait, 10*time.Millisecond))
				continue
			}
			if err != nil {
				return message{}, fmt.Errorf("receive from the DHCP server: %w", err)
			}
			reply, err := decode(buffer[:length])
			switch {
			case err != nil || reply.xid != e.ours.xid || reply.mac != e.ours.mac:
			case reply.kind == wanted:
				return reply, nil
			case reply.kind == nak && wanted == ack:
				return message{}, errRefused
			}
		}
	}
	return message{}, ErrTimeout
}

func temporary(err error) bool {
	return errors.Is(err, syscall.ENETDOWN) || errors.Is(err, syscall.ENOBUFS) || errors.Is(err, syscall.EINTR)
}
