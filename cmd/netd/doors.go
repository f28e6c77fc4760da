package main

import (
	"context"
	"errors"
	"log"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"
)

const (
	probeInterval = 10 * time.Millisecond // of a closed port: the resolution of "the guest listens now"
	openInterval  = 250 * time.Millisecond
	// A guest that has not spoken yet is asked this often: one that wakes from hibernation has its address and
	// nothing to say.
	wakeInterval = time.Second
	// A guest answers a SYN at once or, under emulation on a busy host, within a second; one that has said
	// nothing for this long is rebooting or frozen.
	silenceLimit = 5 * time.Second
	// Probes per interval: a rule for a thousand ports must not keep the guest busy answering. Port 22 is
	// always among them, others take turns.
	probesPerInterval = 2
	// A port that is still closed this long after the guest came up is probed at a tenth of the pace.
	patience    = 10 * time.Minute
	dialTimeout = 60 * time.Second
	bindPause   = time.Second

	maxDoorsPerRule = 32
	sshPort         = 22
)

// Of a rule for a wide range of ports its first ones are opened, and these where they are in it.
var commonPorts = []uint16{22, 80, 443, 8000, 8080, 8443}

// clientRange has the addresses that guests see in place of 127/8, which they could not answer to: one for
// each client, TEST-NET-3 (RFC 5737), which is nobody's.
var (
	clientRange  = netip.PrefixFrom(netip.AddrFrom4([4]byte{203, 0, 113, 0}), 24)
	probeAddress = netip.AddrFrom4([4]byte{203, 0, 113, 254})
	loopback     = netip.PrefixFrom(netip.AddrFrom4([4]byte{127, 0, 0, 0}), 8)
)

const lastClient = 250

// clients gives each client of the host an address of its own in clientRange; the 251st shares the first's.
type clients struct {
	mu    sync.Mutex
	shown map[netip.Addr]netip.Addr
}

func newClients() *clients { return &clients{shown: map[netip.Addr]netip.Addr{}} }

func (c *clients) of(client netip.Addr) netip.Addr {
	c.mu.Lock()
	defer c.mu.Unlock()
	shown, known := c.shown[client]
	if !known {
		shown = netip.AddrFrom4([4]byte{203, 0, 113, byte(len(c.shown)%lastClient + 1)})
		c.shown[client] = shown
	}
	return shown
}

// doors are the listening sockets of one interface on its public address. A door is open while the guest
// itself listens: half-open SYNs ask it, answered by RST before the guest's program learns of them.
type doors struct {
	p          *port
	mu         sync.Mutex
	byPort     map[uint16]*door
	order      []uint16 // of byPort, by turns
	generation int      // of the network's configuration that byPort was made from
	upSince    time.Time
	woken      time.Time // when a guest that has not spoken was asked last
	skipped    int
}

type door struct {
	guestPort uint16
	listener  net.Listener // nil while closed
	probed    time.Time
	answered  time.Time
	bindAfter time.Time
}

func newDoors(p *port) *doors { return &doors{p: p, byPort: map[uint16]*door{}, generation: -1} }

// wantedPorts are the TCP ports that the groups open to somebody on this host.
func (n *network) wantedPorts(groups []string) []uint16 {
	found := map[uint16]bool{}
	for _, id := range groups {
		for _, r := range n.groups[id] {
			if r.Egress || !r.prefix.IsValid() || !r.prefix.Overlaps(loopback) {
				continue
			}
			first, last := max(r.From, 1), min(r.To, 65535)
			switch r.Protocol {
			case "-1":
				first, last = 1, 65535
			case "tcp", "6":
			default:
				continue
			}
			for number := first; number <= min(last, first+maxDoorsPerRule-1); number++ {
				found[uint16(number)] = true
			}
			for _, number := range commonPorts {
				if first <= int(number) && int(number) <= last {
					found[number] = true
				}
			}
		}
	}
	ports := make([]uint16, 0, len(found))
	for number := range found {
		ports = append(ports, number)
	}
	slices.Sort(ports)
	return ports
}

// refresh makes doors for the ports that are wanted now and removes others.
func (d *doors) refresh() {
	groups, public, n := d.p.memberships(), d.p.publicAddress(), d.p.net
	n.mu.RLock()
	generation := n.generation
	wanted := n.wantedPorts(groups)
	n.mu.RUnlock()
	if !public.IsValid() {
		wanted = nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.generation, d.order = generation, wanted
	for number, item := range d.byPort {
		moved := item.listener != nil && addressOf(item.listener) != public
		if !slices.Contains(wanted, number) || moved {
			item.shut()
			delete(d.byPort, number)
		}
	}
	for _, number := range wanted {
		if d.byPort[number] == nil {
			d.byPort[number] = &door{guestPort: number}
		}
	}
}

func addressOf(listener net.Listener) netip.Addr {
	return listener.Addr().(*net.TCPAddr).AddrPort().Addr().Unmap()
}

// tick sends the probes that are due; it is called once per probeInterval.
func (d *doors) tick(now time.Time, generation int) {
	if d.generation != generation {
		d.refresh()
	}
	d.mu.Lock()
	var due []uint16
	if !d.p.up.Load() {
		d.upSince = time.Time{}
		if len(d.order) > 0 && now.Sub(d.woken) >= wakeInterval {
			d.woken = now
			due = append(due, d.order[0])
		}
		d.mu.Unlock()
		d.ask(due)
		return
	}
	if d.upSince.IsZero() {
		d.upSince = now
	}
	slow := now.Sub(d.upSince) > patience && d.skipped%10 != 0
	d.skipped++
	closed := 0
	for turn, number := range d.order {
		item := d.byPort[number]
		switch {
		case item.listener != nil:
			if now.Sub(item.answered) > silenceLimit && now.Sub(item.probed) < silenceLimit {
				item.shut()
			} else if now.Sub(item.probed) >= openInterval {
				due = append(due, number)
			}
		case slow || now.Before(item.bindAfter):
		case number == sshPort || closed < probesPerInterval-1:
			due = append(due, number)
			if number != sshPort {
				closed++
				// The next turn begins behind this one.
				d.order = slices.Concat(d.order[turn+1:], d.order[:turn+1])
			}
		}
	}
	for _, number := range due {
		d.byPort[number].probed = now
	}
	d.mu.Unlock()
	d.ask(due)
}

// ask sends a SYN to each of these ports.
func (d *doors) ask(ports []uint16) {
	for _, number := range ports {
		source := netip.AddrPortFrom(probeAddress, uint16(32768+rand.IntN(28000)))
		target := netip.AddrPortFrom(d.p.address, number)
		d.p.packetToGuest(buildTCP(source, target, rand.Uint32(), 0, flagSYN))
	}
}

// answered takes the guest's answer to a probe.
func (d *doors) answered(p packet) {
	if p.proto != protoTCP || p.fragment {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	item := d.byPort[p.srcPort]
	if p.tcpFlags&(flagSYN|flagACK) == flagSYN|flagACK {
		acknowledged := uint32(p.payload[8])<<24 | uint32(p.payload[9])<<16 | uint32(p.payload[10])<<8 | uint32(p.payload[11])
		from, to := netip.AddrPortFrom(probeAddress, p.dstPort), netip.AddrPortFrom(p.src, p.srcPort)
		d.p.packetToGuest(buildTCP(from, to, acknowledged, 0, flagRST))
		if item != nil && d.p.up.Load() {
			item.answered = time.Now()
			if item.listener == nil && item.answered.After(item.bindAfter) {
				d.open(item)
			}
		}
	} else if p.tcpFlags&flagRST != 0 && item != nil {
		item.answered = time.Now()
		item.shut()
	}
}

// open listens for clients of a port; d.mu is held.
func (d *doors) open(item *door) {
	number := int(item.guestPort)
	if number < 1024 {
		number += d.p.net.portOffset
	}
	at := netip.AddrPortFrom(d.p.publicAddress(), uint16(number))
	listener, err := net.Listen("tcp4", at.String())
	if err != nil {
		log.Printf("%s: %v", d.p.id, err)
		item.bindAfter = time.Now().Add(bindPause)
		return
	}
	item.listener = listener
	go d.serve(item, listener)
}

func (item *door) shut() {
	if item.listener != nil {
		item.listener.Close()
		item.listener = nil
	}
}

func (d *doors) shutAll() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, item := range d.byPort {
		item.shut()
	}
}

func (d *doors) serve(item *door, listener net.Listener) {
	for {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		go d.forward(item, listener, conn.(*net.TCPConn))
	}
}

// forward connects a client of the host with the guest.
func (d *doors) forward(item *door, listener net.Listener, client *net.TCPConn) {
	refuse := func() {
		client.SetLinger(0)
		client.Close()
	}
	from := client.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()
	if !d.admitsClient(from, item.guestPort) {
		refuse()
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), dialTimeout)
	defer cancel()
	n := d.p.net
	release := d.p.hold(&canceller{cancel})
	guest, err := n.stack.dial(ctx, n.clients.of(from), netip.AddrPortFrom(d.p.address, item.guestPort))
	release()
	if err != nil {
		if errors.Is(err, errRefused) {
			d.mu.Lock()
			if item.listener == listener {
				item.shut()
			}
			d.mu.Unlock()
		}
		refuse()
		return
	}
	release = d.p.hold(ender{client, guest})
	defer release()
	splice(client, guest)
}

func (d *doors) admitsClient(from netip.Addr, guestPort uint16) bool {
	groups, n := d.p.memberships(), d.p.net
	n.mu.RLock()
	defer n.mu.RUnlock()
	return n.admits(groups, false, packet{proto: protoTCP, dstPort: guestPort}, from, nil)
}

// canceller ends a dial when the guest is unplugged.
type canceller struct{ cancel func() }

func (c *canceller) Close() error {
	c.cancel()
	return nil
}

// probe asks all guests again and again; it returns when done is closed.
func (n *network) probe(done <-chan struct{}) {
	ticker := time.NewTicker(probeInterval)
	defer ticker.Stop()
	for {
		select {
		case <-done:
			return
		case now := <-ticker.C:
			n.mu.RLock()
			ports := make([]*port, 0, len(n.ports))
			for _, p := range n.ports {
				ports = append(ports, p)
			}
			generation := n.generation
			n.mu.RUnlock()
			for _, p := range ports {
				p.doors.tick(now, generation)
			}
		}
	}
}
