package main

import (
	"encoding/binary"
	"net/netip"
)

const (
	arpLength  = 28
	arpRequest = 1
	arpReply   = 2
)

// answerARP is the reply to a request for the hardware address of an IPv4 address, nil when there is none.
// As in a VPC, the network itself answers and requests are not broadcast: the gateway and the resolver have
// its own address, interfaces theirs, and an address that nobody has is not answered for. A guest that asks
// for its own address (duplicate detection, RFC 5227) is not answered either.
func (n *network) answerARP(asker *port, request []byte) []byte {
	if len(request) < arpLength ||
		binary.BigEndian.Uint16(request[0:]) != 1 || binary.BigEndian.Uint16(request[2:]) != etherTypeIP ||
		binary.BigEndian.Uint16(request[6:]) != arpRequest {
		return nil
	}
	wanted := netip.AddrFrom4([4]byte(request[24:28]))
	owner, found := n.hardwareAddress(asker, wanted)
	if !found {
		return nil
	}
	reply := make([]byte, 8, arpLength)
	copy(reply, request[:6])
	binary.BigEndian.PutUint16(reply[6:], arpReply)
	reply = append(reply, owner[:]...)
	reply = append(reply, request[24:28]...)
	reply = append(reply, request[8:18]...) // who asked
	return etherFrame(asker.mac, owner, etherTypeARP, reply)
}

func (n *network) hardwareAddress(asker *port, wanted netip.Addr) (hardwareAddr, bool) {
	if wanted == asker.gateway || wanted == n.resolver {
		return gatewayMAC, true
	}
	n.mu.RLock()
	defer n.mu.RUnlock()
	if other := n.byAddress[wanted]; other != nil && other != asker && asker.subnet.Contains(wanted) {
		return other.mac, true
	}
	// Link-local services, for guests that take 169.254/16 to be on the link, as ones without a route do.
	return gatewayMAC, isService(wanted)
}
