package main

import (
	"container/list"
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
)

type flowKey struct {
	proto byte
	a, b  netip.AddrPort // a sent the first packet
}

type flow struct {
	key      flowKey
	until    time.Time
	answered bool
	closed   bool
}

// tracker remembers the connections that rules let through, so that answers pass whatever the rules say, and
// connections outlive the rule that admitted them, as in EC2.
type tracker struct {
	mu     sync.Mutex
	tables map[netip.Addr]*flowTable // by the guest that began the connection
	swept  time.Time
	now    func() time.Time
}

// flowTable is what one guest began.
type flowTable struct {
	flows     map[flowKey]*list.Element
	order     list.List // of *flow, the least recently used first
	fragments map[fragmentKey]time.Time
}

type fragmentKey struct {
	dst   netip.Addr
	proto byte
	id    uint16
}

func newTracker(now func() time.Time) *tracker {
	return &tracker{tables: map[netip.Addr]*flowTable{}, now: now}
}

// pass says whether a packet belongs to a known connection, or begins one that decide admits.
func (t *tracker) pass(p packet, decide func() bool) bool {
	now := t.now()
	if passes, known := t.look(p, now); known {
		return passes
	}
	// Without the lock: decide may ask the kernel, and others' packets do not wait for that.
	if !decide() {
		return false
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	table := t.table(p.src)
	if len(table.flows) >= maxFlows {
		table.remove(table.order.Front())
	}
	f := &flow{key: keyOf(p)}
	table.remove(table.flows[f.key]) // one that is over
	table.flows[f.key] = table.order.PushBack(f)
	t.use(f, p, false, now)
	return true
}

// look decides about a packet by what is known; known is false for one that can begin a connection.
func (t *tracker) look(p packet, now time.Time) (passes, known bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.sweep(now)
	if p.fragment { // follows its first one, which has the ports
		table := t.tables[p.src]
		return table != nil && now.Before(table.fragments[fragmentOf(p)]), true
	}
	key := keyOf(p)
	f, answer := t.find(key, now), false
	if f == nil {
		f = t.find(flowKey{proto: key.proto, a: key.b, b: key.a}, now)
		answer = f != nil
	}
	// A connection that is over can be begun again from the same port, but by the rules of now.
	begins := p.proto == protoTCP && p.tcpFlags&(flagSYN|flagACK) == flagSYN
	if f != nil && begins && !answer && f.closed {
		f = nil
	}
	switch {
	case f != nil:
		t.use(f, p, answer, now)
		return true, true
	case isICMPError(p) && t.concernsKnown(p, now):
		return true, true
	case p.proto == protoTCP && !begins:
		// Only a SYN begins a TCP connection: the middle of one that nobody admitted is not let through.
		return false, true
	}
	return false, false
}

func keyOf(p packet) flowKey {
	return flowKey{p.proto, netip.AddrPortFrom(p.src, p.srcPort), netip.AddrPortFrom(p.dst, p.dstPort)}
}

func fragmentOf(p packet) fragmentKey { return fragmentKey{p.dst, p.proto, p.identification} }

func (t *tracker) table(owner netip.Addr) *flowTable {
	if t.tables[owner] == nil {
		t.tables[owner] = &flowTable{flows: map[flowKey]*list.Element{}, fragments: map[fragmentKey]time.Time{}}
	}
	return t.tables[owner]
}

// find returns a connection that has not been idle for too long, nil when there is none.
func (t *tracker) find(key flowKey, now time.Time) *flow {
	if table := t.tables[key.a.Addr()]; table != nil {
		if element := table.flows[key]; element != nil {
			if f := element.Value.(*flow); !now.After(f.until) {
				return f
			}
		}
	}
	return nil
}

// use notes a packet of a connection.
func (t *tracker) use(f *flow, p packet, answer bool, now time.Time) {
	table := t.table(f.key.a.Addr())
	table.order.MoveToBack(table.flows[f.key])
	f.answered = f.answered || answer
	f.until = now.Add(f.idle(p))
	if !p.moreFragments {
		return
	}
	awaited := t.table(p.src).fragments
	if len(awaited) >= maxFragments {
		clear(awaited)
	}
	awaited[fragmentOf(p)] = now.Add(idleOther)
}

func (t *flowTable) remove(element *list.Element) {
	if element != nil {
		t.order.Remove(element)
		delete(t.flows, element.Value.(*flow).key)
	}
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
		if t.find(key, now) != nil {
			return true
		}
	}
	return false
}

// forget drops everything about an address: its next owner is another machine.
func (t *tracker) forget(address netip.Addr) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.tables, address)
	for _, table := range t.tables {
		for key, element := range table.flows {
			if key.b.Addr() == address {
				table.remove(element)
			}
		}
	}
}

func (t *tracker) sweep(now time.Time) {
	if now.Sub(t.swept) < 10*time.Second {
		return
	}
	t.swept = now
	for _, table := range t.tables {
		for _, element := range table.flows {
			if now.After(element.Value.(*flow).until) {
				table.remove(element)
			}
		}
		for key, until := range table.fragments {
			if now.After(until) {
				delete(table.fragments, key)
			}
		}
	}
}
