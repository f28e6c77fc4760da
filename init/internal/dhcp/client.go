/*
Package dhcp keeps one IPv4 lease per network interface (RFC 2131), and is fast: the first packets after a link comes
up are often lost, so the client repeats itself after 100 ms, not after the usual seconds. It does not probe the
address by ARP.

A lease is renewed by asking its server at T1 and any server at T2. It is the user of this package who takes an address
away; the client only says which one it has. When a lease ends because no server answers, or one refuses it, the
client looks for another, for as long as it takes, and the machine keeps the old address until then: one that nobody
can reach is of no use, and in a cloud the address belongs to the interface whatever the DHCP server does.
*/
package dhcp

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"syscall"
	"time"
)

// Pauses before a repeat, by doubling (RFC 2131, section 4.1, asks for 4 s at first; EC2 answers within 1 ms).
const (
	firstPause = 100 * time.Millisecond
	lastPause  = 4 * time.Second
	// answerLimit is how long a server that made an offer, or gave the lease, is asked: six messages.
	answerLimit = 5 * time.Second
)

var errRefused = errors.New("the DHCP server refused")

var everybody = [4]byte{255, 255, 255, 255}

// A Client looks after the lease of one interface.
type Client struct {
	hooks  Hooks
	checks chan struct{}
	done   chan struct{}

	mutex  sync.Mutex
	link   Link // while something is being asked
	closed bool
}

// Hooks are what a Client needs of its interface. All are called by Run alone.
type Hooks struct {
	MAC [6]byte
	// Raw opens a link that needs no address, UDP one from the present address to a server, or to all.
	Raw func() (Link, error)
	UDP func(server [4]byte) (Link, error)
	// OnLease takes a lease that is the first, another one, or confirmed after a Check. After an error the client
	// begins again.
	OnLease func(Lease) error
	// OnTrouble hears why there is no lease yet, or no longer.
	OnTrouble func(error)
}

// NewClient makes a client for Run.
func NewClient(hooks Hooks) *Client {
	return &Client{hooks: hooks, checks: make(chan struct{}, 1), done: make(chan struct{})}
}

// Run obtains a lease and keeps it, until Close.
func (c *Client) Run() {
	for pause := firstPause; ; pause = min(2*pause, lastPause) {
		lease, asked, err := c.obtain()
		if err == nil {
			err = c.hooks.OnLease(lease)
		}
		if err == nil {
			err = c.keep(lease, asked)
			pause = firstPause
		}
		if errors.Is(err, os.ErrClosed) {
			return
		}
		c.hooks.OnTrouble(err)
		// A server that always refuses, or a device that always fails, is not asked all the time.
		select {
		case <-time.After(pause):
		case <-c.done:
			return
		}
	}
}

// Check asks at once whether the lease still holds: the link was away, or the machine asleep. Without a lease it
// asks for one at once.
func (c *Client) Check() {
	select {
	case c.checks <- struct{}{}:
	default: // one is due already
	}
	c.mutex.Lock()
	defer c.mutex.Unlock()
	if c.link != nil {
		c.link.Interrupt()
	}
}

// Close ends Run. The lease is not given back: in a cloud the address belongs to the interface.
func (c *Client) Close() {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	if c.closed {
		return
	}
	c.closed = true
	close(c.done)
	if c.link != nil {
		c.link.Close()
	}
}

// obtain asks until a server gives a lease; it says when that was asked for, which is when its times begin. It returns
// an error when a server refuses or gives something unusable, the interface fails, or at Close.
func (c *Client) obtain() (lease Lease, asked time.Time, err error) {
	err = c.with(c.hooks.Raw, func(link Link) error {
		ask := exchange{c, link, message{kind: discover, xid: rand.Uint32(), mac: c.hooks.MAC}}
		for {
			ask.ours.kind = discover
			offered, err := ask.run(offer, time.Time{})
			if err != nil {
				return err
			}
			asked = time.Now()
			ask.ours.kind, ask.ours.requested, ask.ours.server = request, offered.lease.IP, offered.server
			answer, err := ask.run(ack, time.Now().Add(answerLimit))
			if errors.Is(err, ErrTimeout) {
				continue // that server is gone; another may be there
			}
			if err == nil {
				lease, err = answer.lease.usable()
			}
			return err
		}
	})
	return lease, asked, err
}

// keep renews a lease until that is refused, it ends, a Check finds no answer, or the client is closed.
func (c *Client) keep(lease Lease, asked time.Time) error {
	for {
		var due <-chan time.Time // never, unless the lease has an end
		if lease.Duration != 0 {
			due = time.After(lease.rest(time.Since(asked)))
		}
		checked := false
		select {
		case <-c.done:
			return os.ErrClosed
		case <-c.checks:
			checked = true
		case <-due:
		}
		begin := time.Now()
		age := begin.Sub(asked)
		server := lease.Server
		if checked || age >= lease.T2 {
			server = everybody
		}
		fresh, err := c.renew(lease, server)
		switch {
		case err == nil:
			if checked || !fresh.equal(lease) {
				if err := c.hooks.OnLease(fresh); err != nil {
					return err
				}
			}
			lease, asked = fresh, begin
		case errors.Is(err, os.ErrClosed) || errors.Is(err, errRefused):
			return err
		case checked || age >= lease.Duration:
			return fmt.Errorf("renew the lease of %s: %w", Dotted(lease.IP), err)
		}
	}
}

func (c *Client) renew(lease Lease, server [4]byte) (fresh Lease, err error) {
	err = c.with(func() (Link, error) { return c.hooks.UDP(server) }, func(link Link) error {
		ask := exchange{c, link, message{kind: request, xid: rand.Uint32(), mac: c.hooks.MAC, current: lease.IP}}
		answer, err := ask.run(ack, time.Now().Add(answerLimit))
		if err == nil {
			fresh, err = answer.lease.usable()
		}
		return err
	})
	return fresh, err
}

// with lends an open link, which Check and Close reach.
func (c *Client) with(open func() (Link, error), work func(Link) error) error {
	link, err := open()
	if err != nil {
		return err
	}
	defer link.Close()
	c.mutex.Lock()
	if c.closed {
		c.mutex.Unlock()
		return os.ErrClosed
	}
	c.link = link
	c.mutex.Unlock()
	defer func() {
		c.mutex.Lock()
		c.link = nil
		c.mutex.Unlock()
	}()
	return work(link)
}

type exchange struct {
	client *Client
	link   Link
	ours   message
}

// run sends the message, again and again with the same xid, until a reply of the wanted kind comes. At the deadline,
// unless that is zero, it returns ErrTimeout.
func (e exchange) run(wanted byte, deadline time.Time) (message, error) {
	packet := e.ours.encode()
	for pause := firstPause; deadline.IsZero() || time.Now().Before(deadline); pause = min(2*pause, lastPause) {
		// A link that is not up yet answers ENETDOWN or ENOBUFS: the next try may succeed.
		if err := e.link.Send(packet); err != nil && !temporary(err) {
			return message{}, fmt.Errorf("send to the DHCP server: %w", err)
		}
		reply, err := e.listen(wanted, time.Now().Add(pause))
		switch {
		case errors.Is(err, ErrInterrupted):
			e.client.answerCheck()
			pause = firstPause / 2 // there may be a link now: begin again
		case !errors.Is(err, ErrTimeout):
			return reply, err
		}
	}
	return message{}, ErrTimeout
}

// answerCheck takes the Check that interrupted: what it asks for is being done.
func (c *Client) answerCheck() {
	select {
	case <-c.checks:
	default:
	}
}

func (e exchange) listen(wanted byte, until time.Time) (message, error) {
	buffer := make([]byte, 2048)
	for {
		length, err := e.link.Receive(buffer, until)
		if temporary(err) {
			if time.Now().After(until) {
				return message{}, ErrTimeout
			}
			time.Sleep(10 * time.Millisecond)
			continue
		}
		if err != nil {
			return message{}, err
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

func temporary(err error) bool {
	for _, passing := range []error{syscall.ENETDOWN, syscall.ENOBUFS, syscall.EINTR} {
		if errors.Is(err, passing) {
			return true
		}
	}
	return false
}
