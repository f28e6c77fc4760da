package main

import (
	"encoding/binary"
	"net/netip"
)

const (
	dhcpServerPort = 67
	dhcpClientPort = 68
	dhcpFixed      = 240 // bytes before the options, the magic cookie included
	dhcpMagic      = 0x63825363
	leaseSeconds   = 3600 // as EC2
	// EC2's jumbo frames inside a VPC; virtio-net and the stream to QEMU carry them as they are.
	guestMTU = 9001

	dhcpDiscover = 1
	dhcpOffer    = 2
	dhcpRequest  = 3
	dhcpACK      = 5
	dhcpNAK      = 6
	dhcpInform   = 8

	optMask      = 1
	optRouter    = 3
	optDNS       = 6
	optHostName  = 12
	optDomain    = 15
	optMTU       = 26
	optBroadcast = 28
	optRequested = 50
	optLease     = 51
	optType      = 53
	optServer    = 54
	optEnd       = 255
)

// dhcpOptions finds options by number; false for a message that is malformed.
func dhcpOptions(message []byte) (map[byte][]byte, bool) {
	found := map[byte][]byte{}
	for rest := message[dhcpFixed:]; len(rest) > 0; {
		if rest[0] == optEnd {
			return found, true
		}
		if rest[0] == 0 {
			rest = rest[1:]
			continue
		}
		if len(rest) < 2 || len(rest) < 2+int(rest[1]) {
			return nil, false
		}
		found[rest[0]] = rest[2 : 2+int(rest[1])]
		rest = rest[2+int(rest[1]):]
	}
	return found, true
}

// answerDHCP is the frame that answers a client's message, nil when none does. A port has one address, so
// there is no pool and no state: a request for another address is refused.
func (n *network) answerDHCP(p *port, request []byte) []byte {
	if len(request) < dhcpFixed || request[0] != 1 || binary.BigEndian.Uint32(request[236:]) != dhcpMagic ||
		hardwareAddr(request[28:34]) != p.mac {
		return nil
	}
	options, ok := dhcpOptions(request)
	if !ok || len(options[optType]) != 1 {
		return nil
	}
	if server := options[optServer]; len(server) == 4 && netip.AddrFrom4([4]byte(server)) != p.gateway {
		return nil // the client has chosen another server
	}
	kind, wanted := byte(dhcpACK), p.address
	if requested := options[optRequested]; len(requested) == 4 {
		wanted = netip.AddrFrom4([4]byte(requested))
	} else if current := netip.AddrFrom4([4]byte(request[12:16])); !current.IsUnspecified() {
		wanted = current
	}
	switch options[optType][0] {
	case dhcpDiscover:
		kind = dhcpOffer
	case dhcpRequest:
		if wanted != p.address {
			kind = dhcpNAK
		}
	case dhcpInform:
	default: // DECLINE, RELEASE: the address stays the port's
		return nil
	}
	reply := make([]byte, dhcpFixed, 512)
	copy(reply, request[:dhcpFixed])
	reply[0], reply[3] = 2, 0
	clear(reply[8:10])   // secs
	clear(reply[44:236]) // server and file names
	if kind != dhcpNAK && options[optType][0] != dhcpInform {
		copy(reply[16:20], p.address.AsSlice())
	}
	add := func(option byte, value ...byte) {
		reply = append(append(reply, option, byte(len(value))), value...)
	}
	add(optType, kind)
	add(optServer, p.gateway.AsSlice()...)
	if kind != dhcpNAK {
		if options[optType][0] != dhcpInform {
			add(optLease, binary.BigEndian.AppendUint32(nil, leaseSeconds)...)
		}
		mask := ^uint32(0) << (32 - p.subnet.Bits())
		network := binary.BigEndian.Uint32(p.subnet.Masked().Addr().AsSlice())
		add(optMask, binary.BigEndian.AppendUint32(nil, mask)...)
		add(optBroadcast, binary.BigEndian.AppendUint32(nil, network|^mask)...)
		add(optRouter, p.gateway.AsSlice()...)
		add(optDNS, n.resolver.AsSlice()...)
		add(optHostName, []byte(p.hostName)...)
		add(optDomain, []byte(n.domain)...)
		add(optMTU, binary.BigEndian.AppendUint16(nil, guestMTU)...)
	}
	reply = append(reply, optEnd)
	for len(reply) < 300 { // what BOOTP's clients expect at least (RFC 1542, 2.1)
		reply = append(reply, 0)
	}
	// To the address it is about to have (RFC 2131, 4.1), unless the client cannot receive that yet.
	to, toMAC := p.address, p.mac
	if request[10]&0x80 != 0 || kind == dhcpNAK {
		to, toMAC = netip.AddrFrom4([4]byte{255, 255, 255, 255}), broadcast
	}
	datagram := buildUDP(netip.AddrPortFrom(p.gateway, dhcpServerPort), netip.AddrPortFrom(to, dhcpClientPort), reply)
	return etherFrame(toMAC, gatewayMAC, etherTypeIP, datagram)
}
