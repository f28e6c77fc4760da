package main

import (
	"net/netip"
	"strconv"
	"sync"
	"time"
)

// A rule of a security group admits traffic from or to a range of addresses or the members of a group.
type rule struct {
	Egress   bool   `json:"egress"`
	Protocol string `json:"protocol"` // tcp, udp, icmp, a number, or -1 for all
	From     int    `json:"from"`     // ports; for ICMP type, -1 for all
	To       int    `json:"to"`       // ports; for ICMP code, -1 for all
	CIDR     string `json:"cidr,omitempty"`
	Group    string `json:"group,omitempty"`

	prefix netip.Prefix // of CIDR, when it is one of IPv4
}

func (r *rule) matchesProtocol(p packet) bool {
	switch r.Protocol {
	case "-1":
		return true
	case "tcp", "6":
		return p.proto == protoTCP && r.hasPort(p.dstPort)
	case "udp", "17":
		return p.proto == protoUDP && r.hasPort(p.dstPort)
	case "icmp", "1":
		return p.proto == protoICMP && (r.From == -1 || r.From == int(p.payload[0])) &&
			(r.To == -1 || r.To == int(p.payload[1]))
	}
	return r.Protocol == strconv.Itoa(int(p.proto))
}

func (r *rule) hasPort(port uint16) bool {
	return r.From <= int(port) && int(port) <= r.To
}

// admits says whether one rule of these groups lets a first packet pass. peer is the other side's port when it
// is in this network.
func (n *network) admits(groups []string, egress bool, p packet, peerAddress netip.Addr, peer *port) bool {
	for _, id := range groups {
		for i := range n.groups[id] {
			r := &n.groups[id][i]
			if r.Egress != egress || !r.matchesProtocol(p) {
				continue
			}
			if r.prefix.IsValid() && r.prefix.Contains(peerAddress) {
				return true
			}
			if r.Group != "" && peer != nil && peer.isMember(r.Group) {
				return true
			}
		}
	}
	return false
}

// Idle times of tracked connections: EC2's defaults for TCP and for UDP streams.
const (
	idleTCP    = 432000 * time.Second
	idleClosed = 60 * time.Second
	idleOpen   = 60 * time.Second // a TCP connection of which one side has said nothing
	idleUDP    = 180 * time.Second
	idleOther  = 30 * time.Second
	maxFlows   = 1 << 16
)

type flowKey struct {
	proto byte
	a, b  netip.AddrPort // a sent the first packet
}

type flow struct {
	until    time.Time
	answered bool
	closed   bool
}

// tracker remembers the connections that rules let through, so that answers pass whatever the rules say, and
// connections outlive the rule that admitted them, as in EC2.
type tracker struct {
	mu        sync.Mutex
	flows     map[flowKey]*flow
	fragments map[fragmentKey]time.Time
	swept     time.Time
	now       func() time.Time
}

type fragmentKey struct {
	src, dst netip.Addr
	proto    byte
	id       uint16
}

func newTracker(now func() time.Time) *tracker {
	return &tracker{flows: map[flowKey]*flow{}, fragments: map[fragmentKey]time.Time{}, now: now}
}

// pass says whether a packet belongs to a known connection, or begins one that decide admits.
func (t *tracker) pass(p packet, decide func() bool) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.now()
	t.sweep(now)
	fragment := fragmentKey{p.src, p.dst, p.proto, p.identification}
	if p.fragment { // follows its first one, which has the ports
		until, known := t.fragments[fragment]
		return known && now.Before(until)
	}
	source, target := netip.AddrPortFrom(p.src, p.srcPort), netip.AddrPortFrom(p.dst, p.dstPort)
	key := flowKey{proto: p.proto, a: source, b: target}
	answer := false
	f, known := t.flows[key]
	if !known || now.After(f.until) {
		reverse := flowKey{proto: p.proto, a: target, b: source}
		f, known = t.flows[reverse]
		known = known && !now.After(f.until)
		answer = known
	}
	// A connection that is over can be begun again from the same port, but by the rules of now.
	begins := p.proto == protoTCP && p.tcpFlags&(flagSYN|flagACK) == flagSYN
	if known && begins && !answer && f.closed {
		known = false
	}
	if !known {
		if isICMPError(p) && t.concernsKnown(p, now) {
			return true
		}
		// Only a SYN begins a TCP connection: the middle of one that nobody admitted is not let through.
		if p.proto == protoTCP && !begins || len(t.flows) >= maxFlows || !decide() {
			return false
		}
		f = &flow{}
		t.flows[key] = f
	}
	f.answered = f.answered || answer
	f.until = now.Add(f.idle(p))
	if p.moreFragments {
		t.fragments[fragment] = now.Add(idleOther)
	}
	return true
}

func (f *flow) idle(p packet) time.Duration {
	switch p.proto {
	case protoTCP:
		f.closed = f.closed || p.tcpFlags&flagRST != 0 || (p.tcpFlags&flagFIN != 0 && f.answered)
		switch {
		case f.closed:
			return idleClosed
		case f.answered:
			return idleTCP
		}
		return idleOpen
	case protoUDP:
		return idleUDP
	}
	return idleOther
}

func isICMPError(p packet) bool {
	return p.proto == protoICMP && (p.payload[0] == icmpUnreachable || p.payload[0] == 11 || p.payload[0] == 12)
}

// concernsKnown says whether an ICMP error quotes a packet of a tracked connection, sent to where the error
// comes from.
func (t *tracker) concernsKnown(p packet, now time.Time) bool {
	quoted := p.payload[8:]
	if len(quoted) < ipHeader+4 || quoted[0] != 0x45 {
		return false
	}
	from, to := netip.AddrFrom4([4]byte(quoted[12:16])), netip.AddrFrom4([4]byte(quoted[16:20]))
	fromPort := uint16(quoted[20])<<8 | uint16(quoted[21])
	toPort := uint16(quoted[22])<<8 | uint16(quoted[23])
	if from != p.dst {
		return false
	}
	a, b := netip.AddrPortFrom(from, fromPort), netip.AddrPortFrom(to, toPort)
	for _, key := range []flowKey{{proto: quoted[9], a: a, b: b}, {proto: quoted[9], a: b, b: a}} {
		if f := t.flows[key]; f != nil && now.Before(f.until) {
			return true
		}
	}
	return false
}

// forget drops everything about an address: its next owner is another machine.
func (t *tracker) forget(address netip.Addr) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for key := range t.flows {
		if key.a.Addr() == address || key.b.Addr() == address {
			delete(t.flows, key)
		}
	}
}

func (t *tracker) sweep(now time.Time) {
	if now.Sub(t.swept) < 10*time.Second {
		return
	}
	t.swept = now
	for key, f := range t.flows {
		if now.After(f.until) {
			delete(t.flows, key)
		}
	}
	for key, until := range t.fragments {
		if now.After(until) {
			delete(t.fragments, key)
		}
	}
}
