package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// dhcpMessage is a client's message of a kind, with further options as (number, value) pairs.
func dhcpMessage(mac hardwareAddr, kind byte, options ...[]byte) []byte {
	m := make([]byte, dhcpFixed)
	m[0], m[1], m[2] = 1, 1, 6
	copy(m[4:], "xid!")
	copy(m[28:], mac[:])
	binary.BigEndian.PutUint32(m[236:], dhcpMagic)
	m = append(m, optType, 1, kind)
	for _, option := range options {
		m = append(append(m, option[0], byte(len(option)-1)), option[1:]...)
	}
	return append(m, optEnd)
}

func (g *testGuest) dhcp(message []byte) map[byte][]byte {
	source := netip.AddrPortFrom(netip.IPv4Unspecified(), dhcpClientPort)
	g.send(broadcast, etherTypeIP, buildUDP(source, netip.AddrPortFrom(broadcastAddress, dhcpServerPort), message))
	data := g.answer()
	if data == nil {
		return nil
	}
	p, ok := parseIP(data[etherHeader:])
	if !ok || p.proto != protoUDP || p.dstPort != dhcpClientPort || p.src.String() != "172.31.0.1" {
		g.t.Fatalf("no DHCP answer but % x", data)
	}
	reply := p.payload[udpHeader:]
	if string(reply[4:8]) != "xid!" {
		g.t.Fatal("another transaction")
	}
	options, _ := dhcpOptions(reply)
	options[0] = reply[16:20]
	return options
}

func TestDHCPGivesWhatEC2Gives(t *testing.T) {
	g := newGuest(t, testNetwork(t, config{}), 10, "")
	offer := g.dhcp(dhcpMessage(g.mac, dhcpDiscover))
	ack := g.dhcp(dhcpMessage(g.mac, dhcpRequest, append([]byte{optRequested}, g.address.AsSlice()...)))
	if offer == nil || ack == nil || offer[optType][0] != dhcpOffer || ack[optType][0] != dhcpACK {
		t.Fatalf("%v, %v", offer, ack)
	}
	for option, want := range map[byte][]byte{
		0: {172, 31, 1, 10}, optMask: {255, 255, 240, 0}, optRouter: {172, 31, 0, 1},
		optDNS: {172, 31, 0, 2}, optServer: {172, 31, 0, 1}, optLease: {0, 0, 0x0e, 0x10},
		optMTU: {0x23, 0x29}, optDomain: []byte("ec2.internal"), optHostName: []byte("ip-172-31-1-10"),
	} {
		if !bytes.Equal(ack[option], want) {
			t.Errorf("option %d is %v, not %v", option, ack[option], want)
		}
	}
}

func TestDHCPRefusesAnotherAddress(t *testing.T) {
	g := newGuest(t, testNetwork(t, config{}), 10, "")
	answer := g.dhcp(dhcpMessage(g.mac, dhcpRequest, []byte{optRequested, 172, 31, 1, 99}))
	if answer == nil || answer[optType][0] != dhcpNAK {
		t.Fatal(answer)
	}
	if answer := g.dhcp(dhcpMessage(g.mac, dhcpRequest, []byte{optServer, 10, 0, 0, 1})); answer != nil {
		t.Fatal("it answered for another server")
	}
}

func TestDHCPMessagesAreLostOnDemand(t *testing.T) {
	n := testNetwork(t, config{})
	g := newGuest(t, n, 10, "")
	if err := n.portOf(g.address).setFaults(faults{DropDHCP: 2}); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if g.dhcp(dhcpMessage(g.mac, dhcpDiscover)) != nil {
			t.Fatal("it was not lost")
		}
	}
	if g.dhcp(dhcpMessage(g.mac, dhcpDiscover)) == nil {
		t.Fatal("a third one was lost")
	}
}

func (g *testGuest) arp(wanted string) []byte {
	g.requestARP(netip.MustParseAddr(wanted))
	if data := g.answer(); data != nil {
		return data[etherHeader+8 : etherHeader+14]
	}
	return nil
}

func TestARP(t *testing.T) {
	n := testNetwork(t, config{})
	g, other := newGuest(t, n, 10, ""), newGuest(t, n, 11, "")
	for wanted, owner := range map[string][]byte{
		"172.31.0.1": gatewayMAC[:], "172.31.0.2": gatewayMAC[:], "169.254.169.254": gatewayMAC[:],
		"172.31.1.11": other.mac[:], "172.31.1.12": nil, "172.31.1.10": nil,
	} {
		if got := g.arp(wanted); !bytes.Equal(got, owner) {
			t.Errorf("%s is at % x, not % x", wanted, got, owner)
		}
	}
}

func TestIMDSKnowsTheHopLimit(t *testing.T) {
	g := newGuest(t, testNetwork(t, config{}), 10, "")
	client := http.Client{Timeout: longEnough, Transport: &http.Transport{
		DialContext: func(_ context.Context, _, address string) (net.Conn, error) { return g.dial(address) },
	}}
	request, _ := http.NewRequest("PUT", "http://169.254.169.254/latest/api/token", nil)
	request.Header.Set("X-aws-ec2-metadata-token-ttl-seconds", "60")
	response, err := client.Do(request)
	if err != nil || response.StatusCode != 200 {
		t.Fatalf("%v %v", response, err)
	}
	token := make([]byte, response.ContentLength)
	response.Body.Read(token)
	response.Body.Close()
	request, _ = http.NewRequest("GET", "http://169.254.169.254/latest/meta-data/instance-id", nil)
	request.Header.Set("X-aws-ec2-metadata-token", string(token))
	if response, err = client.Do(request); err != nil || response.StatusCode != 200 {
		t.Fatalf("%v %v", response, err)
	}
	response.Body.Close()
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.ttls) < 2 || g.ttls[0] != 2 || g.ttls[len(g.ttls)-1] != defaultTTL {
		t.Fatalf("times to live %v, not 2 for the token and %d for what follows", g.ttls, defaultTTL)
	}
}

func dnsQuery(name string, kind uint16) []byte {
	query := []byte{7, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0}
	query = append(query, encodeName(name)...)
	return append(query, byte(kind>>8), byte(kind), 0, classIN)
}

func TestTheResolverKnowsPrivateNames(t *testing.T) {
	n := testNetwork(t, config{})
	for _, c := range []struct {
		name string
		kind uint16
		code byte
		data string
	}{
		{"ip-172-31-9-8.ec2.internal", typeA, codeOK, "\xac\x1f\x09\x08"},
		{"IP-172-31-9-8.EC2.internal", typeA, codeOK, "\xac\x1f\x09\x08"},
		{"ip-172-31-9-8.ec2.internal", 28, codeOK, ""},
		{"ip-10-0-0-1.ec2.internal", typeA, codeNXDomain, ""},
		{"8.9.31.172.in-addr.arpa", typePTR, codeOK, string(encodeName("ip-172-31-9-8.ec2.internal"))},
		{"deb.debian.org", typeA, codeNXDomain, ""},
	} {
		reply := n.resolve(dnsQuery(c.name, c.kind), "udp", &rests{since: map[string]time.Time{}})
		if reply[3]&15 != c.code || !strings.HasSuffix(string(reply), c.data) || (c.data != "") != (reply[7] == 1) {
			t.Errorf("%s: % x", c.name, reply)
		}
	}
	for _, broken := range [][]byte{nil, {1, 2, 3}, dnsQuery("a", typeA)[:14]} {
		if reply := n.resolve(broken, "udp", &rests{since: map[string]time.Time{}}); reply != nil {
			t.Errorf("% x was answered", broken)
		}
	}
}

func TestTheResolverAnswersOnTheWire(t *testing.T) {
	g := newGuest(t, testNetwork(t, config{}), 10, "")
	source := netip.AddrPortFrom(g.address, 4000)
	for _, server := range []string{"172.31.0.2:53", "169.254.169.253:53"} {
		g.sendFrom(g.address, buildUDP(source, netip.MustParseAddrPort(server), dnsQuery("ip-172-31-1-1.ec2.internal", typeA)))
		if data := g.frame(); data == nil || !bytes.HasSuffix(data, []byte{172, 31, 1, 1}) {
			t.Errorf("%s: % x", server, data)
		}
		conn, err := g.dial(server)
		if err != nil {
			t.Fatal(err)
		}
		writeMessage(conn, dnsQuery("ip-172-31-1-1.ec2.internal", typeA))
		if reply, err := readMessage(conn); err != nil || !bytes.HasSuffix(reply, []byte{172, 31, 1, 1}) {
			t.Errorf("%s by TCP: % x, %v", server, reply, err)
		}
		conn.Close()
	}
}

func TestTheResolverIsSilentOnDemand(t *testing.T) {
	n := testNetwork(t, config{})
	g := newGuest(t, n, 10, "")
	ask := func(limit time.Duration) []byte {
		g.sendFrom(g.address, buildUDP(netip.AddrPortFrom(g.address, 4000), netip.MustParseAddrPort("172.31.0.2:53"),
			dnsQuery("ip-172-31-1-1.ec2.internal", typeA)))
		return g.frameWithin(limit)
	}
	for _, silent := range []bool{true, false} {
		if err := n.portOf(g.address).setFaults(faults{SilentDNS: silent}); err != nil {
			t.Fatal(err)
		}
		limit := longEnough
		if silent {
			limit = 500 * time.Millisecond
		}
		if answer := ask(limit); (answer == nil) != silent {
			t.Errorf("silent %v: % x", silent, answer)
		}
		g.settled() // the faults change when the query has been handled
	}
}

func TestTheTimeIsTheHosts(t *testing.T) {
	request := make([]byte, ntpLength)
	request[0] = 4<<3 | 3
	copy(request[40:], "original")
	now := time.Date(2030, 1, 2, 3, 4, 5, 5e8, time.UTC)
	reply := answerNTP(request, now)
	if seconds := binary.BigEndian.Uint32(reply[40:]); int64(seconds)-ntpEra != now.Unix() || reply[44] != 0x80 {
		t.Errorf("transmit time % x", reply[40:])
	}
	if string(reply[24:32]) != "original" || reply[0] != 4<<3|4 {
		t.Errorf("% x", reply)
	}
}
