package main

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"
	"time"
)

// parsersNetwork is a network without machines or sockets, and a port of it: what answers are made from.
func parsersNetwork() (*network, *port) {
	n := &network{
		config:   config{vpc: netip.MustParsePrefix("172.31.0.0/16"), domain: "ec2.internal"},
		resolver: netip.MustParseAddr("172.31.0.2"), byAddress: map[netip.Addr]*port{}, tracker: newTracker(time.Now),
	}
	p := &port{
		mac: hardwareAddr{2, 0, 0, 0, 0, 1}, address: netip.MustParseAddr("172.31.5.10"), subnet: netip.MustParsePrefix("172.31.0.0/20"),
		gateway: netip.MustParseAddr("172.31.0.1"), hostName: "ip-172-31-5-10", net: n,
	}
	other := &port{mac: hardwareAddr{2, 0, 0, 0, 0, 2}, address: netip.MustParseAddr("172.31.5.11"), net: n}
	n.byAddress[p.address], n.byAddress[other.address] = p, other
	return n, p
}

// FuzzPacket: what a guest sends is parsed within its bounds, and the tracker takes whatever was parsed.
func FuzzPacket(f *testing.F) {
	from, to := netip.MustParseAddrPort("172.31.5.10:5000"), netip.MustParseAddrPort("172.31.5.11:53")
	f.Add(buildUDP(from, to, []byte("x")))
	f.Add(buildTCP(from, to, 1, 2, 0x12))
	f.Add(buildIP(from.Addr(), to.Addr(), protoICMP, []byte{icmpEchoRequest, 0, 0, 0, 1, 2, 0, 3}))
	unreachable, _ := parseIP(buildUDP(from, to, []byte("x")))
	f.Add(buildUnreachable(to.Addr(), unreachable, codePort))
	f.Add([]byte{0x4f, 0, 0, 60})
	f.Fuzz(func(t *testing.T, data []byte) {
		before := bytes.Clone(data)
		p, ok := parseIP(data)
		if !ok {
			return
		}
		if len(p.ip) > len(data) || len(p.payload) > len(p.ip)-ipHeader {
			t.Fatalf("%d bytes of payload in %d of a packet in %d", len(p.payload), len(p.ip), len(data))
		}
		newTracker(time.Now).pass(p, func() bool { return true })
		if newTracker(time.Now).pass(p, func() bool { return false }) {
			t.Error("a packet passed that nothing admits")
		}
		buildUnreachable(p.dst, p, codePort)
		if !bytes.Equal(data, before) {
			t.Fatal("the packet was changed")
		}
	})
}

// FuzzDHCPRequest: an answer is a whole frame to the client's own port, whatever it asks.
func FuzzDHCPRequest(f *testing.F) {
	n, p := parsersNetwork()
	request := func(options ...byte) []byte {
		message := make([]byte, dhcpFixed)
		message[0] = 1
		copy(message[28:], p.mac[:])
		binary.BigEndian.PutUint32(message[236:], dhcpMagic)
		return append(message, options...)
	}
	f.Add([]byte{optType, 1, dhcpDiscover, optEnd})
	f.Add([]byte{optType, 1, dhcpRequest, optRequested, 4, 172, 31, 5, 10, optEnd})
	f.Add([]byte{0, optType, 1, dhcpInform, optServer, 4, 172, 31, 0, 1})
	f.Add([]byte{12, 255, 0})
	f.Fuzz(func(t *testing.T, options []byte) {
		frame := n.answerDHCP(p, request(options...))
		if frame == nil {
			return
		}
		answer, ok := parseIP(frame[14:])
		if !ok || answer.proto != protoUDP || answer.dstPort != dhcpClientPort || len(answer.payload) < udpHeader+300 {
			t.Errorf("%v: answered %x", options, frame)
		}
		if _, ok := dhcpOptions(answer.payload[udpHeader:]); !ok {
			t.Errorf("%v: options that cannot be read: %x", options, answer.payload)
		}
	})
}

// FuzzDNSQuery: an answer of the network's own has the question as it was asked.
func FuzzDNSQuery(f *testing.F) {
	n, _ := parsersNetwork()
	for _, name := range []string{"ip-172-31-5-10.ec2.internal", "10.5.31.172.in-addr.arpa", "example.org", ""} {
		query := append([]byte{0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0}, encodeName(name)...)
		f.Add(append(query, 0, typeA, 0, classIN))
	}
	f.Add([]byte("\x00\x01\x78\x00\x00\x01\x00\x00\x00\x00\x00\x00\x3f"))
	f.Fuzz(func(t *testing.T, query []byte) {
		before := bytes.Clone(query)
		q, ok := parseQuestion(query)
		reply := n.resolve(query, "udp", &rests{})
		if ok != (reply != nil) {
			t.Fatalf("parsed %v, answered %x", ok, reply)
		}
		if ok && (!bytes.Equal(reply[:2], query[:2]) || !bytes.Equal(reply[dnsHeader:q.end], query[dnsHeader:q.end]) || reply[2]&0x80 == 0) {
			t.Errorf("%x was answered by %x", query, reply)
		}
		if !bytes.Equal(query, before) {
			t.Fatal("the query was changed")
		}
	})
}

// FuzzARP: an answer goes to who asked, and says who has the address.
func FuzzARP(f *testing.F) {
	n, p := parsersNetwork()
	request := []byte{0, 1, 8, 0, 6, 4, 0, arpRequest, 2, 0, 0, 0, 0, 1, 172, 31, 5, 10, 0, 0, 0, 0, 0, 0}
	f.Add(append(bytes.Clone(request), 172, 31, 5, 11))
	f.Add(append(bytes.Clone(request), 172, 31, 0, 1))
	f.Add(append(bytes.Clone(request), 169, 254, 169, 254, 0))
	f.Add(request)
	f.Fuzz(func(t *testing.T, request []byte) {
		frame := n.answerARP(p, request)
		if frame == nil {
			return
		}
		if reply := frame[14:]; hardwareAddr(frame[:6]) != p.mac || len(reply) != arpLength || !bytes.Equal(reply[14:18], request[24:28]) {
			t.Errorf("%x was answered by %x", request, frame)
		}
	})
}

// FuzzNTP: an answer is one packet that repeats the client's own time.
func FuzzNTP(f *testing.F) {
	client := make([]byte, ntpLength)
	client[0] = 0x23
	f.Add(client, int64(1_700_000_000_000_000_000))
	f.Add([]byte{0x23}, int64(-1))
	f.Fuzz(func(t *testing.T, request []byte, now int64) {
		reply := answerNTP(request, time.Unix(0, now))
		if reply != nil && (len(reply) != ntpLength || reply[0]&7 != 4 || !bytes.Equal(reply[24:32], request[40:48])) {
			t.Errorf("%x was answered by %x", request, reply)
		}
	})
}
