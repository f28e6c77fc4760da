package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"
)

func echo(kind byte, id uint16) []byte {
	message := []byte{kind, 0, 0, 0, byte(id >> 8), byte(id), 0, 1}
	binary.BigEndian.PutUint16(message[2:], checksum(message))
	return message
}

// ping sends an echo request from one guest to the other and says whether it arrived.
func ping(from, to *testGuest) bool {
	from.sendFrom(from.address, buildIP(from.address, to.address, protoICMP, echo(icmpEchoRequest, 7)))
	from.settled()
	return to.answer() != nil
}

func TestSecurityGroupsBetweenGuests(t *testing.T) {
	icmp := allow("icmp", -1, -1, "172.31.0.0/16")
	for name, c := range map[string]struct {
		ingress, egress []rule
		passes          bool
	}{
		"no rule":            {nil, []rule{allEgress}, false},
		"by range":           {[]rule{icmp}, []rule{allEgress}, true},
		"another range":      {[]rule{allow("icmp", -1, -1, "10.0.0.0/8")}, []rule{allEgress}, false},
		"another protocol":   {[]rule{allow("tcp", 0, 65535, "0.0.0.0/0")}, []rule{allEgress}, false},
		"another type":       {[]rule{allow("icmp", 13, -1, "0.0.0.0/0")}, []rule{allEgress}, false},
		"this type":          {[]rule{allow("icmp", 8, -1, "0.0.0.0/0")}, []rule{allEgress}, true},
		"all protocols":      {[]rule{allow("-1", -1, -1, "0.0.0.0/0")}, []rule{allEgress}, true},
		"by group":           {[]rule{{Protocol: "-1", Group: "sg-from"}}, []rule{allEgress}, true},
		"by another group":   {[]rule{{Protocol: "-1", Group: "sg-x"}}, []rule{allEgress}, false},
		"no way out":         {[]rule{icmp}, nil, false},
		"way out to a group": {[]rule{icmp}, []rule{{Egress: true, Protocol: "-1", Group: "sg-to"}}, true},
	} {
		t.Run(name, func(t *testing.T) {
			n := testNetwork(t, config{})
			setGroups(t, n, map[string][]rule{"sg-from": c.egress, "sg-to": c.ingress})
			from, to := newGuest(t, n, 10, "", "sg-from"), newGuest(t, n, 11, "", "sg-to")
			if ping(from, to) != c.passes {
				t.Error("wrong")
			}
		})
	}
}

func TestAnswersPassWithoutARule(t *testing.T) {
	n := testNetwork(t, config{})
	setGroups(t, n, map[string][]rule{"sg-out": {allEgress}, "sg-in": {allow("-1", -1, -1, "0.0.0.0/0")}})
	asks, answers := newGuest(t, n, 10, "", "sg-out"), newGuest(t, n, 11, "", "sg-in")
	if ping(answers, asks) {
		t.Fatal("the asking side lets something in")
	}
	reply := func() bool {
		answers.sendFrom(asks.address, buildIP(answers.address, asks.address, protoICMP, echo(icmpEchoReply, 7)))
		answers.settled()
		return asks.answer() != nil
	}
	if reply() {
		t.Fatal("an answer to nothing")
	}
	if !ping(asks, answers) || !reply() {
		t.Fatal("an answer does not pass")
	}
}

func TestTCPBetweenGuests(t *testing.T) {
	n := testNetwork(t, config{})
	setGroups(t, n, map[string][]rule{
		"sg-a": {allEgress}, "sg-b": {allow("tcp", 80, 81, "172.31.1.10/32"), allEgress},
	})
	a, b := newGuest(t, n, 10, "", "sg-a"), newGuest(t, n, 11, "", "sg-b")
	listener := b.listen(80)
	b.listen(82)
	go func() {
		if conn, err := listener.Accept(); err == nil {
			conn.Write([]byte("hello"))
			conn.Close()
		}
	}()
	conn, err := a.dial("172.31.1.11:80")
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 5)
	if _, err := conn.Read(got); err != nil || string(got) != "hello" {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := a.dial("172.31.1.11:81"); !errors.Is(err, errRefused) {
		t.Errorf("a closed port: %v", err)
	}
	if _, err := a.dialWithin(time.Second, "172.31.1.11:82"); err == nil || errors.Is(err, errRefused) {
		t.Errorf("a port without a rule is silent, not: %v", err)
	}
}

func TestOnlyItsOwnAddress(t *testing.T) {
	n := testNetwork(t, config{})
	setGroups(t, n, map[string][]rule{"sg": {allEgress, allow("-1", -1, -1, "0.0.0.0/0")}})
	a, b := newGuest(t, n, 10, "", "sg"), newGuest(t, n, 11, "", "sg")
	forged := netip.MustParseAddr("172.31.1.12")
	a.sendFrom(b.address, buildIP(forged, b.address, protoICMP, echo(icmpEchoRequest, 7)))
	a.settled()
	if b.answer() != nil {
		t.Error("a forged address passes")
	}
}

func TestTheMiddleOfAConnectionIsNotLetIn(t *testing.T) {
	now := time.Unix(1e9, 0)
	tracker := newTracker(func() time.Time { return now })
	a, b := netip.MustParseAddrPort("172.31.1.10:1000"), netip.MustParseAddrPort("172.31.1.11:80")
	send := func(from, to netip.AddrPort, flags byte, admitted bool) bool {
		p, ok := parseIP(buildTCP(from, to, 1, 1, flags))
		if !ok {
			t.Fatal("unreadable")
		}
		return tracker.pass(p, func() bool { return admitted })
	}
	if send(a, b, flagACK, true) {
		t.Error("an ACK began a connection")
	}
	if !send(a, b, flagSYN, true) || !send(b, a, flagSYN|flagACK, false) || !send(a, b, flagACK, false) {
		t.Error("a connection that the rules admitted does not get through")
	}
	now = now.Add(24 * time.Hour)
	if !send(b, a, flagACK, false) {
		t.Error("an idle connection is forgotten after a day")
	}
	send(a, b, flagRST, false)
	if send(a, b, flagSYN, false) {
		t.Error("the same ports anew, past a rule that is gone")
	}
	now = now.Add(2 * idleClosed)
	if send(b, a, flagACK, false) {
		t.Error("a connection that is over goes on")
	}
}

func TestPacketsAreLostAndLateOnDemand(t *testing.T) {
	n := testNetwork(t, config{})
	g := newGuest(t, n, 10, "")
	g.speak()
	p := n.ports["eni-172.31.1.10"]
	if err := p.setFaults(faults{DropProbability: 1}); err != nil {
		t.Fatal(err)
	}
	g.requestARP(netip.MustParseAddr("172.31.0.1"))
	if g.frameWithin(500*time.Millisecond) != nil {
		t.Error("nothing was lost")
	}
	if err := p.setFaults(faults{DelayMS: 60}); err != nil {
		t.Fatal(err)
	}
	g.settled() // the first request has been handled, however late
	begin := time.Now()
	if g.arp("172.31.0.1") == nil || time.Since(begin) < 120*time.Millisecond {
		t.Errorf("an answer after %v", time.Since(begin))
	}
	if p.setFaults(faults{DropProbability: 2}) == nil {
		t.Error("an impossible probability")
	}
}

// Outside

func TestWithoutAWayOutTheAnswerIsQuick(t *testing.T) {
	n := testNetwork(t, config{})
	setGroups(t, n, map[string][]rule{"sg": {allEgress}})
	g := newGuest(t, n, 10, publicAddress, "sg")
	source := netip.AddrPortFrom(g.address, 4000)
	for _, packet := range [][]byte{
		buildTCP(source, netip.MustParseAddrPort("8.8.8.8:80"), 1, 0, flagSYN),
		buildUDP(source, netip.MustParseAddrPort("8.8.8.8:53"), nil),
		buildIP(g.address, netip.MustParseAddr("8.8.8.8"), protoICMP, echo(icmpEchoRequest, 1)),
	} {
		g.sendFrom(g.address, packet)
		data := g.frame()
		if p, ok := parseIP(data[min(len(data), etherHeader):]); !ok || p.proto != protoICMP || p.payload[0] != icmpUnreachable {
			t.Errorf("% x", data)
		}
	}
}

func TestTheWorldIsReachedAndTheHostIsNot(t *testing.T) {
	n := testNetwork(t, config{allowEgress: true})
	setGroups(t, n, map[string][]rule{
		"sg": {{Egress: true, Protocol: "tcp", From: 80, To: 80, CIDR: "0.0.0.0/0"}},
	})
	world, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer world.Close()
	var dialled []string
	n.egress.addresses = func() ([]net.Addr, error) {
		return []net.Addr{&net.IPNet{IP: net.ParseIP("9.9.9.9"), Mask: net.CIDRMask(24, 32)}}, nil
	}
	n.egress.dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		dialled = append(dialled, address)
		return net.Dial(network, world.Addr().String())
	}
	go func() {
		if conn, err := world.Accept(); err == nil {
			conn.Write([]byte("world"))
			conn.Close()
		}
	}()
	g := newGuest(t, n, 10, publicAddress, "sg")
	conn, err := g.dial("8.8.8.8:80")
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 5)
	if _, err := conn.Read(got); err != nil || !bytes.Equal(got, []byte("world")) {
		t.Errorf("%q, %v", got, err)
	}
	var attempts sync.WaitGroup // at the same time: nobody answers, so each lasts as long as it may
	for _, closed := range []string{"8.8.8.8:81", "127.0.0.1:80", "9.9.9.9:80", "10.1.1.1:80", "169.254.1.1:80", "192.168.0.1:80"} {
		attempts.Go(func() {
			if _, err := g.dialWithin(time.Second, closed); err == nil {
				t.Errorf("%s is reached", closed)
			}
		})
	}
	attempts.Wait()
	if len(dialled) != 1 {
		t.Errorf("the host connected to %v", dialled)
	}
	private := newGuest(t, n, 12, "", "sg")
	if _, err := private.dialWithin(time.Second, "8.8.8.8:80"); err == nil {
		t.Error("a guest without a public address reaches the world")
	}
}
