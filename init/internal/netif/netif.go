// Package netif finds and configures network interfaces over rtnetlink (rtnetlink(7)). Addresses are
// installed without a lifetime: a lease that nobody could renew does not take the machine off the network.
package netif

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"os"
	"strings"
	"syscall"
)

// Loopback is the index of `lo` in every network namespace (LOOPBACK_IFINDEX, linux/net/net_namespace.h).
const Loopback = 1

// Of linux/rtnetlink.h, if_addr.h and fib_rules.h; package syscall lacks them.
const (
	routeByDHCP    = 16      // RTPROT_DHCP
	routeTable     = 15      // RTA_TABLE
	addressMetric  = 9       // IFA_RT_PRIORITY: of the route to the subnet (Linux 4.18)
	ruleSource     = 2       // FRA_SRC
	rulePriority   = 6       // FRA_PRIORITY
	ruleTable      = 15      // FRA_TABLE
	ruleHeaderSize = 12      // struct fib_rule_hdr
	ruleToTable    = 1       // FR_ACT_TO_TBL
	lowerUp        = 1 << 16 // IFF_LOWER_UP (linux/if.h)
)

// An Interface is an Ethernet device.
type Interface struct {
	Name   string
	Index  int
	MAC    [6]byte
	Linked bool // it has a carrier (IFF_LOWER_UP)
}

// Address is what DHCP gives an interface.
type Address struct {
	IP, Mask, Gateway [4]byte // a zero Gateway sets no default route
	MTU               int     // 0 leaves the driver's
	Metric            int     // of the routes in the main table; lower wins
	// Table, unless 0, has routes of its own for packets from IP, and the rule that leads there: they leave by this
	// interface whatever the main table prefers.
	Table int
}

// HasDevice tells a network card from what is software alone: lo, bridges, tunnels, a container's end of a veth pair.
func HasDevice(name string) bool {
	_, err := os.Stat("/sys/class/net/" + name + "/device")
	return err == nil
}

// List returns the Ethernet interfaces with a name that is wanted, lowest index first.
func List(wanted func(name string) bool) ([]Interface, error) {
	dump, err := syscall.NetlinkRIB(syscall.RTM_GETLINK, syscall.AF_UNSPEC)
	if err != nil {
		return nil, fmt.Errorf("list network interfaces: %w", err)
	}
	found, err := parseLinks(dump)
	if err != nil {
		return nil, fmt.Errorf("list network interfaces: %w", err)
	}
	var nics []Interface
	for _, nic := range found {
		if wanted(nic.Name) {
			// Before those with a higher index: the kernel goes by a hash.
			nics = append(nics, nic)
			for i := len(nics) - 1; i > 0 && nics[i-1].Index > nics[i].Index; i-- {
				nics[i-1], nics[i] = nics[i], nics[i-1]
			}
		}
	}
	return nics, nil
}

func parseLinks(dump []byte) ([]Interface, error) {
	messages, err := syscall.ParseNetlinkMessage(dump)
	if err != nil {
		return nil, err
	}
	var found []Interface
	for _, message := range messages {
		if message.Header.Type != syscall.RTM_NEWLINK || len(message.Data) < syscall.SizeofIfInfomsg {
			continue
		}
		// struct ifinfomsg: family, padding, type (2 bytes), index, flags, change mask (4 bytes each).
		if binary.NativeEndian.Uint16(message.Data[2:]) != syscall.ARPHRD_ETHER {
			continue
		}
		nic := Interface{
			Index:  int(int32(binary.NativeEndian.Uint32(message.Data[4:]))),
			Linked: binary.NativeEndian.Uint32(message.Data[8:])&lowerUp != 0,
		}
		if len(message.Data)%syscall.RTA_ALIGNTO != 0 { // the kernel pads attributes, and Go's parser relies on it
			return nil, syscall.EINVAL
		}
		attributes, err := syscall.ParseNetlinkRouteAttr(&message)
		if err != nil {
			return nil, err
		}
		for _, attribute := range attributes {
			switch attribute.Attr.Type {
			case syscall.IFLA_IFNAME:
				nic.Name = strings.TrimRight(string(attribute.Value), "\x00")
			case syscall.IFLA_ADDRESS:
				copy(nic.MAC[:], attribute.Value)
			}
		}
		found = append(found, nic)
	}
	return found, nil
}

// Up sets IFF_UP. The kernel gives `lo` its addresses when it comes up.
func Up(index int) error { return setUp(index, syscall.IFF_UP, "bring it up") }

// Down takes IFF_UP away: the card sends and receives nothing more.
func Down(index int) error { return setUp(index, 0, "take it down") }

func setUp(index int, flags uint32, what string) error {
	change := linkRequest(index)
	binary.NativeEndian.PutUint32(change.data[syscall.SizeofNlMsghdr+8:], flags)
	binary.NativeEndian.PutUint32(change.data[syscall.SizeofNlMsghdr+12:], syscall.IFF_UP)
	return run([]step{{what, change, 0}})
}

// Configure installs MTU, address and routes. What is there already is no error, so it also mends what was taken
// away. An MTUError says that all but the MTU was done.
func Configure(index int, address Address) error {
	var mtu error
	if address.MTU > 0 {
		change := linkRequest(index)
		change.number(syscall.IFLA_MTU, uint32(address.MTU))
		// A driver that cannot do 9001 does not cost the login.
		mtu = run([]step{{"MTU", change, 0}})
	}
	if err := run(address.install(index)); err != nil {
		return err
	}
	if mtu != nil {
		return &MTUError{address.MTU, mtu}
	}
	return nil
}

// MTUError says that all but the MTU was set.
type MTUError struct {
	MTU int
	Err error
}

func (e *MTUError) Error() string { return fmt.Sprintf("MTU %d: %v", e.MTU, e.Err) }
func (e *MTUError) Unwrap() error { return e.Err }

// Forget takes away what Configure installed, but for the MTU; what has gone with the interface is no error. The
// routes go with their source address.
func Forget(index int, address Address) error {
	steps := []step{{"remove the address", address.message(syscall.RTM_DELADDR, 0, index), syscall.EADDRNOTAVAIL}}
	if address.Table != 0 {
		steps = append(steps, step{"remove the rule", address.rule(syscall.RTM_DELRULE, 0), syscall.ENOENT})
	}
	var failures []error
	for _, one := range steps {
		if err := run([]step{one}); err != nil && !errors.Is(err, syscall.ENODEV) {
			failures = append(failures, err)
		}
	}
	return errors.Join(failures...)
}

const (
	create  = syscall.NLM_F_CREATE
	replace = syscall.NLM_F_REPLACE
)

func (a Address) install(index int) []step {
	steps := []step{{"address", a.message(syscall.RTM_NEWADDR, create|replace, index), 0}}
	if a.Gateway != [4]byte{} {
		steps = append(steps, step{"default route", a.route(index, syscall.RT_TABLE_MAIN, false), 0})
	}
	if a.Table == 0 {
		return steps
	}
	steps = append(steps, step{"route to the subnet", a.route(index, a.Table, true), 0})
	if a.Gateway != [4]byte{} {
		steps = append(steps, step{"default route by source", a.route(index, a.Table, false), 0})
	}
	return append(steps, step{"rule", a.rule(syscall.RTM_NEWRULE, create|syscall.NLM_F_EXCL), syscall.EEXIST})
}

func (a Address) prefix() int { return bits.OnesCount32(binary.BigEndian.Uint32(a.Mask[:])) }

func (a Address) broadcast() (out [4]byte) {
	for i := range out {
		out[i] = a.IP[i] | ^a.Mask[i]
	}
	return out
}

func (a Address) network() (out [4]byte) {
	for i := range out {
		out[i] = a.IP[i] & a.Mask[i]
	}
	return out
}

// message is struct ifaddrmsg with its attributes.
func (a Address) message(kind, flags uint16, index int) *request {
	r := newRequest(kind, flags, []byte{syscall.AF_INET, byte(a.prefix()), 0, syscall.RT_SCOPE_UNIVERSE, 0, 0, 0, 0})
	binary.NativeEndian.PutUint32(r.data[syscall.SizeofNlMsghdr+4:], uint32(index))
	r.bytes(syscall.IFA_LOCAL, a.IP[:])
	r.bytes(syscall.IFA_ADDRESS, a.IP[:])
	if kind == syscall.RTM_NEWADDR {
		broadcast := a.broadcast()
		r.bytes(syscall.IFA_BROADCAST, broadcast[:])
		r.number(addressMetric, uint32(a.Metric))
	}
	return r
}

// route is struct rtmsg with its attributes: to the subnet, or the default by the gateway.
func (a Address) route(index, table int, subnet bool) *request {
	header := make([]byte, syscall.SizeofRtMsg)
	header[0], header[4] = syscall.AF_INET, syscall.RT_TABLE_UNSPEC // RTA_TABLE, which has room, says it
	header[5], header[6], header[7] = routeByDHCP, syscall.RT_SCOPE_UNIVERSE, syscall.RTN_UNICAST
	if subnet {
		header[1], header[6] = byte(a.prefix()), syscall.RT_SCOPE_LINK
	}
	r := newRequest(syscall.RTM_NEWROUTE, create|replace, header)
	r.number(routeTable, uint32(table))
	r.number(syscall.RTA_OIF, uint32(index))
	r.bytes(syscall.RTA_PREFSRC, a.IP[:])
	if subnet {
		network := a.network()
		r.bytes(syscall.RTA_DST, network[:])
	} else {
		r.bytes(syscall.RTA_GATEWAY, a.Gateway[:])
	}
	if table == syscall.RT_TABLE_MAIN {
		r.number(syscall.RTA_PRIORITY, uint32(a.Metric))
	}
	return r
}

// rule sends packets from the address to its table.
func (a Address) rule(kind, flags uint16) *request {
	header := make([]byte, ruleHeaderSize)
	header[0], header[2], header[7] = syscall.AF_INET, 32, ruleToTable
	r := newRequest(kind, flags, header)
	r.bytes(ruleSource, a.IP[:])
	r.number(rulePriority, uint32(a.Table))
	r.number(ruleTable, uint32(a.Table))
	return r
}
