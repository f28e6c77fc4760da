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
	// How often a guest that has sent nothing yet is probed: one that resumes from hibernation has its address
	// already, and no reason to send.
	wakeInterval = time.Second
	// A guest answers a SYN at once or, under emulation on a busy host, within a second; one that has sent
	// nothing for this long is rebooting or frozen.
	silenceLimit = 5 * time.Second
	// Probes per interval, so that a rule for a thousand ports does not keep the guest busy. Port 22 is always
	// among them, the others take turns.
	probesPerInterval = 2
	// A port that is still closed this long after the guest came up is probed at a tenth of the pace.
	patience    = 10 * time.Minute
	dialTimeout = 60 * time.Second
	bindPause   = time.Second

	maxForwardsPerRule = 32
	sshPort            = 22
)

// commonPorts are forwarded wherever a rule includes them; of a wide range besides these only the first
// maxForwardsPerRule ports are.
var commonPorts = []uint16{22, 80, 443, 8000, 8080, 8443}

// clientRange is TEST-NET-3 (RFC 5737), which no host has. Guests see addresses of it in place of 127/8, because they
// cannot answer to loopback addresses; each client of the host has one.
var (
	clientRange  = netip.PrefixFrom(netip.AddrFrom4([4]byte{203, 0, 113, 0}), 24)
	probeAddress = netip.AddrFrom4([4]byte{203, 0, 113, 254})
	loopback     = netip.PrefixFrom(netip.AddrFrom4([4]byte{127, 0, 0, 0}), 8)
)

const lastClient = 250

// clients maps each client of the host to an address in clientRange; the 251st client shares the first one's.
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

// portForwards are the listening sockets of one interface on its public address. A port is forwarded while the
// guest listens on it, which half-open connects find out: netd sends a SYN and answers the SYN-ACK with RST, so that
// the guest's program never sees the connection.
type portForwards struct {
	p          *port
	mu         sync.Mutex
	byPort     map[uint16]*forward
	order      []uint16 // of byPort, by turns
	generation int      // of the network's configuration that byPort was made from
	upSince    time.Time
	woken      time.Time // when a silent guest was last probed
	skipped    int
}

// forward is one port of the guest.
type forward struct {
	guestPort uint16
	listener  net.Listener // nil while closed
	probed    time.Time
	answered  time.Time
	bindAfter time.Time
}

func newPortForwards(p *port) *portForwards {
	return &portForwards{p: p, byPort: map[uint16]*forward{}, generation: -1}
}

// wantedPorts returns the TCP ports that these groups open to any loopback address, in ascending order.
func (n *network) wantedPorts(groups []string) []uint16 {
	wanted := map[uint16]bool{}
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
			for number := first; number <= min(last, first+maxForwardsPerRule-1); number++ {
				wanted[uint16(number)] = true
			}
			for _, number := range commonPorts {
				if first <= int(number) && int(number) <= last {
					wanted[number] = true
				}
			}
		}
	}
	ports := make([]uint16, 0, len(wanted))
	for number := range wanted {
		ports = append(ports, number)
	}
	slices.Sort(ports)
	return ports
}

// refresh adds forwards for the ports that the security groups open now, and removes the others.
func (pf *portForwards) refresh() {
	groups, public, n := pf.p.memberships(), pf.p.publicAddress(), pf.p.net
	n.mu.RLock()
	generation := n.generation
	wanted := n.wantedPorts(groups)
	n.mu.RUnlock()
	if !public.IsValid() {
		wanted = nil
	}
	pf.mu.Lock()
	defer pf.mu.Unlock()
	pf.generation, pf.order = generation, wanted
	for number, f := range pf.byPort {
		moved := f.listener != nil && addressOf(f.listener) != public
		if !slices.Contains(wanted, number) || moved {
			f.close()
			delete(pf.byPort, number)
		}
	}
	for _, number := range wanted {
		if pf.byPort[number] == nil {
			pf.byPort[number] = &forward{guestPort: number}
		}
	}
}

func addressOf(listener net.Listener) netip.Addr {
	return listener.Addr().(*net.TCPAddr).AddrPort().Addr().Unmap()
}

// tick sends the probes that are due; it is called once per probeInterval.
func (pf *portForwards) tick(now time.Time, generation int) {
	if pf.generation != generation {
		pf.refresh()
	}
	pf.mu.Lock()
	var due []uint16
	if !pf.p.up.Load() {
		pf.upSince = time.Time{}
		if len(pf.order) > 0 && now.Sub(pf.woken) >= wakeInterval {
			pf.woken = now
			due = append(due, pf.order[0])
		}
		pf.mu.Unlock()
		pf.probe(due)
		return
	}
	if pf.upSince.IsZero() {
		pf.upSince = now
	}
	slow := now.Sub(pf.upSince) > patience && pf.skipped%10 != 0
	pf.skipped++
	closed := 0
	for turn, number := range pf.order {
		f := pf.byPort[number]
		switch {
		case f.listener != nil:
			if now.Sub(f.answered) > silenceLimit && now.Sub(f.probed) < silenceLimit {
				f.close()
			} else if now.Sub(f.probed) >= openInterval {
				due = append(due, number)
			}
		case slow || now.Before(f.bindAfter):
		case number == sshPort || closed < probesPerInterval-1:
			due = append(due, number)
			if number != sshPort {
				closed++
				// The next turn begins behind this one.
				pf.order = slices.Concat(pf.order[turn+1:], pf.order[:turn+1])
			}
		}
	}
	for _, number := range due {
		pf.byPort[number].probed = now
	}
	pf.mu.Unlock()
	pf.probe(due)
}

// probe sends a SYN to each of these ports.
func (pf *portForwards) probe(ports []uint16) {
	for _, number := range ports {
		source := netip.AddrPortFrom(probeAddress, uint16(32768+rand.IntN(28000)))
		target := netip.AddrPortFrom(pf.p.address, number)
		pf.p.packetToGuest(buildTCP(source, target, rand.Uint32(), 0, flagSYN))
	}
}

// handleProbeReply opens or closes a port by the guest's answer to a probe.
func (pf *portForwards) handleProbeReply(p packet) {
	if p.proto != protoTCP || p.fragment {
		return
	}
	pf.mu.Lock()
	defer pf.mu.Unlock()
	f := pf.byPort[p.srcPort]
	if p.tcpFlags&(flagSYN|flagACK) == flagSYN|flagACK {
		acknowledged := uint32(p.payload[8])<<24 | uint32(p.payload[9])<<16 | uint32(p.payload[10])<<8 | uint32(p.payload[11])
		from, to := netip.AddrPortFrom(probeAddress, p.dstPort), netip.AddrPortFrom(p.src, p.srcPort)
		pf.p.packetToGuest(buildTCP(from, to, acknowledged, 0, flagRST))
		if f != nil && pf.p.up.Load() {
			f.answered = time.Now()
			if f.listener == nil && f.answered.After(f.bindAfter) {
				pf.open(f)
			}
		}
	} else if p.tcpFlags&flagRST != 0 && f != nil {
		f.answered = time.Now()
		f.close()
	}
}

// open starts to listen for clients of a port; pf.mu is held.
func (pf *portForwards) open(f *forward) {
	number := int(f.guestPort)
	if number < 1024 {
		number += pf.p.net.portOffset
	}
	at := netip.AddrPortFrom(pf.p.publicAddress(), uint16(number))
	listener, err := net.Listen("tcp4", at.String())
	if err != nil {
		log.Printf("%s: %v", pf.p.id, err)
		f.bindAfter = time.Now().Add(bindPause)
		return
	}
	f.listener = listener
	go pf.serve(f, listener)
}

// close stops listening; established connections go on.
func (f *forward) close() {
	if f.listener != nil {
		f.listener.Close()
		f.listener = nil
	}
}

// closeAll stops listening on all ports.
func (pf *portForwards) closeAll() {
	pf.mu.Lock()
	defer pf.mu.Unlock()
	for _, f := range pf.byPort {
		f.close()
	}
}

func (pf *portForwards) serve(f *forward, listener net.Listener) {
	acceptLoop(pf.p.id, listener.Accept, func(conn net.Conn) { go pf.connect(f, listener, conn.(*net.TCPConn)) })
}

// connect carries one client's connection to the guest.
func (pf *portForwards) connect(f *forward, listener net.Listener, client *net.TCPConn) {
	refuse := func() {
		client.SetLinger(0)
		client.Close()
	}
	from := client.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()
	if !pf.admitsClient(from, f.guestPort) || !pf.p.clients.tryAcquire() {
		refuse()
		return
	}
	defer pf.p.clients.release()
	ctx, cancel := context.WithTimeout(context.Background(), dialTimeout)
	defer cancel()
	n := pf.p.net
	release := pf.p.hold(&canceller{cancel})
	guest, err := n.stack.dial(ctx, n.clients.of(from), netip.AddrPortFrom(pf.p.address, f.guestPort))
	release()
	if err != nil {
		if errors.Is(err, errRefused) {
			pf.mu.Lock()
			if f.listener == listener {
				f.close()
			}
			pf.mu.Unlock()
		}
		refuse()
		return
	}
	release = pf.p.hold(ender{client, guest})
	defer release()
	splice(client, guest)
}

func (pf *portForwards) admitsClient(from netip.Addr, guestPort uint16) bool {
	groups, n := pf.p.memberships(), pf.p.net
	n.mu.RLock()
	defer n.mu.RUnlock()
	return n.admits(groups, false, packet{proto: protoTCP, dstPort: guestPort}, from, nil)
}

// canceller cancels a dial when the guest is unplugged.
type canceller struct{ cancel func() }

func (c *canceller) Close() error {
	c.cancel()
	return nil
}

// probeGuests sends all guests' probes until done is closed.
func (n *network) probeGuests(done <-chan struct{}) {
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
				p.forwards.tick(now, generation)
			}
		}
	}
}
