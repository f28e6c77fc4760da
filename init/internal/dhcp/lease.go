package dhcp

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"slices"
	"time"
)

// leastPause is between two tries to renew a lease (RFC 2131, section 4.4.5).
const leastPause = time.Minute

// A Lease is what the server gave. Zero values were not given.
type Lease struct {
	IP, Mask, Router, Server [4]byte
	DNS                      [][4]byte
	MTU                      int
	Hostname, Domain         string
	Duration                 time.Duration // 0: for ever
	// T1 is when the server is asked to renew it, T2 when any server is, counted from the request.
	T1, T2 time.Duration
}

// usable fills in what RFC 2131 says about times that were not given, or that make no sense.
func (l Lease) usable() (Lease, error) {
	mask := binary.BigEndian.Uint32(l.Mask[:])
	if l.IP == [4]byte{} || mask == 0 || bits.LeadingZeros32(^mask) != bits.OnesCount32(mask) {
		return l, fmt.Errorf("the DHCP server gave %s with the netmask %s", Dotted(l.IP), Dotted(l.Mask))
	}
	if l.Duration == 0 {
		l.T1, l.T2 = 0, 0
	} else if l.T1 <= 0 || l.T1 >= l.T2 || l.T2 >= l.Duration {
		l.T1, l.T2 = l.Duration/2, l.Duration/8*7
	}
	return l, nil
}

// equal compares all but the times.
func (l Lease) equal(other Lease) bool {
	return l.IP == other.IP && l.Mask == other.Mask && l.Router == other.Router && l.Server == other.Server &&
		slices.Equal(l.DNS, other.DNS) && l.MTU == other.MTU && l.Hostname == other.Hostname && l.Domain == other.Domain
}

// rest is how long a lease of this age is left alone: until T1, then for half of what is left until T2, and from T2
// on until its end, but at least for a minute. 0 means that it has ended.
func (l Lease) rest(age time.Duration) time.Duration {
	switch {
	case age < l.T1:
		return l.T1 - age
	case age < l.T2:
		return min(max((l.T2-age)/2, leastPause), l.T2-age)
	case age < l.Duration:
		return min(max((l.Duration-age)/2, leastPause), l.Duration-age)
	}
	return 0
}

// Dotted is an address as people write it.
func Dotted(ip [4]byte) string { return fmt.Sprintf("%d.%d.%d.%d", ip[0], ip[1], ip[2], ip[3]) }
