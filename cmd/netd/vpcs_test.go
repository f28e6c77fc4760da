package main

import (
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"testing"
)

// testVPCs are dispatched to as the server does it.
func testVPCs(t *testing.T) *vpcs {
	t.Helper()
	v := newVPCs(config{domain: "ec2.internal"}, func(*port) {})
	t.Cleanup(v.close)
	do(t, v, command{Do: "groups", Groups: map[string][]rule{"sg": {allEgress, allow("-1", 0, 65535, "0.0.0.0/0")}}})
	return v
}

func do(t *testing.T, v *vpcs, c command) answer {
	t.Helper()
	a := v.dispatch(c)
	if a.Error != "" {
		t.Fatal(a.Error)
	}
	return a
}

// guestIn plugs in an interface at 10.0.1.<octet> of a VPC and connects to it.
func guestIn(t *testing.T, v *vpcs, vpc string, octet byte) *testGuest {
	t.Helper()
	address := netip.AddrFrom4([4]byte{10, 0, 1, octet})
	mac := hardwareAddr{2, 0, 0, 0, 1, octet}
	c := portConfig{
		ID: "eni-" + vpc + "-" + address.String(), VPC: vpc, VPCCIDR: "10.0.0.0/16",
		Socket: filepath.Join(t.TempDir(), "nic"), MAC: net.HardwareAddr(mac[:]).String(), Address: address.String(),
		Subnet: "10.0.1.0/24", HostName: privateName(address), Metadata: "testdata/metadata.json", Groups: []string{"sg"},
	}
	do(t, v, command{Do: "port", Port: c})
	return connectGuest(t, v.byID[vpc].network, c)
}

// discover asks for an address; nil when there is no answer.
func (g *testGuest) discover() []byte {
	g.t.Helper()
	source := netip.AddrPortFrom(netip.IPv4Unspecified(), dhcpClientPort)
	to := netip.AddrPortFrom(broadcastAddress, dhcpServerPort)
	g.send(broadcast, etherTypeIP, buildUDP(source, to, dhcpMessage(g.mac, dhcpDiscover)))
	return g.answer()
}

func TestVPCsWithTheSameAddressesAreApart(t *testing.T) {
	v := testVPCs(t)
	asks, answers := guestIn(t, v, "vpc-1", 10), guestIn(t, v, "vpc-1", 11)
	same, other := guestIn(t, v, "vpc-2", 10), guestIn(t, v, "vpc-2", 12)
	if !ping(asks, answers) || !ping(same, other) {
		t.Fatal("a packet within a VPC does not arrive")
	}
	if ping(asks, other) || ping(same, answers) {
		t.Fatal("a packet reaches another VPC")
	}
	status := do(t, v, command{Do: "status"}).Ports
	if len(status) != 4 || !status["eni-vpc-2-10.0.1.10"].Up {
		t.Fatal(status)
	}
	do(t, v, command{Do: "faults", Name: "eni-vpc-2-10.0.1.10", Faults: faults{DropDHCP: 1}})
	if asks.discover() == nil || same.discover() != nil || same.discover() == nil {
		t.Error("the fault is not at its interface")
	}
	do(t, v, command{Do: "remove", Name: "eni-vpc-2-10.0.1.10"})
	if !ping(asks, answers) {
		t.Error("an interface of another VPC was removed")
	}
}

func TestAVPCHasItsOwnServices(t *testing.T) {
	g := guestIn(t, testVPCs(t), "vpc-1", 10)
	p, ok := parseIP(g.discover()[etherHeader:])
	if !ok {
		t.Fatal("no DHCP answer")
	}
	options, _ := dhcpOptions(p.payload[udpHeader:])
	for option, want := range map[byte][]byte{
		optRouter: {10, 0, 1, 1}, optMask: {255, 255, 255, 0}, optDNS: {10, 0, 0, 2}, optHostName: []byte("ip-10-0-1-10"),
	} {
		if !slices.Equal(options[option], want) {
			t.Errorf("option %d: % x", option, options[option])
		}
	}
	resolver := netip.MustParseAddrPort("10.0.0.2:53")
	g.sendFrom(g.address, buildUDP(netip.AddrPortFrom(g.address, 4000), resolver, dnsQuery("ip-10-0-1-77.ec2.internal", typeA)))
	reply, ok := parseIP(g.frame()[etherHeader:])
	if address := reply.payload[len(reply.payload)-4:]; !ok || !slices.Equal(address, []byte{10, 0, 1, 77}) {
		t.Errorf("% x", reply.payload)
	}
}

func TestANetworkEndsWithItsLastInterface(t *testing.T) {
	v := testVPCs(t)
	guestIn(t, v, "vpc-1", 10)
	do(t, v, command{Do: "remove", Name: "eni-vpc-1-10.0.1.10"})
	if len(v.byID) != 0 {
		t.Fatal(v.byID)
	}
	if a := v.dispatch(command{Do: "port", Port: portConfig{ID: "eni-1", VPC: "vpc-2", VPCCIDR: "10.0.0.0"}}); a.Error == "" {
		t.Error("a VPC without a range")
	}
	if a := v.dispatch(command{Do: "port", Port: portConfig{ID: "eni-1", VPC: "vpc-2", VPCCIDR: "10.0.0.0/16"}}); a.Error == "" {
		t.Error("an interface without an address")
	}
	if len(v.byID) != 0 {
		t.Error("a network without interfaces stays")
	}
	guestIn(t, v, "vpc-1", 10) // the address is free again
}
