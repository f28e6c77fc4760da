// Package netif configures IPv4 on network interfaces by the classic ioctls (netdevice(7)): an address set
// this way has no lifetime, so a lease that nobody renews does not take the machine off the network.
package netif

import (
	"encoding/binary"
	"fmt"
	"math"
	"os"
	"sort"
	"strconv"
	"strings"
	"syscall"
	"unsafe"
)

// sysClassNet is where the kernel lists interfaces.
const sysClassNet = "/sys/class/net"

// An Interface is an Ethernet device with hardware behind it.
type Interface struct {
	Name  string
	Index int
	MAC   [6]byte
}

// Address is what DHCP gives an interface.
type Address struct {
	IP, Mask, Gateway [4]byte // a zero Gateway sets no route
	MTU               int     // 0 leaves the driver's
	Metric            int     // of the default route; lower wins
}

// List returns the Ethernet interfaces that a device stands behind, lowest index first.
func List() ([]Interface, error) {
	entries, err := os.ReadDir(sysClassNet)
	if err != nil {
		return nil, err
	}
	var found []Interface
	for _, entry := range entries {
		nic, err := inspect(entry.Name())
		if err == nil {
			found = append(found, nic)
		}
	}
	sort.Slice(found, func(i, j int) bool { return found[i].Index < found[j].Index })
	return found, nil
}

func inspect(name string) (Interface, error) {
	directory := sysClassNet + "/" + name
	if _, err := os.Stat(directory + "/device"); err != nil {
		return Interface{}, err // lo, bridges, tunnels
	}
	kind, err := os.ReadFile(directory + "/type")
	if err != nil {
		return Interface{}, err
	}
	if strings.TrimSpace(string(kind)) != strconv.Itoa(syscall.ARPHRD_ETHER) {
		return Interface{}, fmt.Errorf("%s is not Ethernet", name)
	}
	text, err := os.ReadFile(directory + "/ifindex")
	if err != nil {
		return Interface{}, err
	}
	index, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return Interface{}, err
	}
	text, err = os.ReadFile(directory + "/address")
	if err != nil {
		return Interface{}, err
	}
	mac, err := parseMAC(strings.TrimSpace(string(text)))
	return Interface{Name: name, Index: index, MAC: mac}, err
}

func parseMAC(text string) (mac [6]byte, err error) {
	parts := strings.Split(text, ":")
	if len(parts) != len(mac) {
		return mac, fmt.Errorf("%q is no MAC address", text)
	}
	for i, part := range parts {
		value, err := strconv.ParseUint(part, 16, 8)
		if err != nil {
			return mac, fmt.Errorf("%q is no MAC address", text)
		}
		mac[i] = byte(value)
	}
	return mac, nil
}

// request is struct ifreq of linux/if.h on 64-bit machines.
type request struct {
	name [syscall.IFNAMSIZ]byte
	data [24]byte
}

// route is struct rtentry of linux/route.h on 64-bit machines.
type route struct {
	_                    uint64
	destination, gateway [16]byte
	mask                 [16]byte
	flags                uint16
	_                    int16
	_                    uint64
	_                    uintptr
	metric               int16
	device               *byte
	mtu, window          uint64
	irtt                 uint16
}

// Up sets IFF_UP. The kernel gives `lo` its addresses when it comes up.
func Up(name string) error {
	return withSocket(func(socket int) error {
		flags := newRequest(name)
		if err := ioctl(socket, syscall.SIOCGIFFLAGS, unsafe.Pointer(&flags)); err != nil {
			return fmt.Errorf("read flags of %s: %w", name, err)
		}
		value := binary.NativeEndian.Uint16(flags.data[:]) | syscall.IFF_UP
		binary.NativeEndian.PutUint16(flags.data[:], value)
		if err := ioctl(socket, syscall.SIOCSIFFLAGS, unsafe.Pointer(&flags)); err != nil {
			return fmt.Errorf("bring %s up: %w", name, err)
		}
		return nil
	})
}

// Configure installs address, mask, MTU and default route, in the order that the kernel wants.
func Configure(name string, address Address) error {
	return withSocket(func(socket int) error {
		// The MTU may fail (a driver that cannot do 9001) without costing the login.
		var mtu error
		if address.MTU > 0 {
			change := newRequest(name)
			binary.NativeEndian.PutUint32(change.data[:], uint32(address.MTU))
			mtu = ioctl(socket, syscall.SIOCSIFMTU, unsafe.Pointer(&change))
		}
		for _, step := range []struct {
			what    string
			request uintptr
			value   [4]byte
		}{
			{"address", syscall.SIOCSIFADDR, address.IP},
			{"netmask", syscall.SIOCSIFNETMASK, address.Mask},
			{"broadcast address", syscall.SIOCSIFBRDADDR, broadcast(address)},
		} {
			change := newRequest(name)
			copy(change.data[:], socketAddress(step.value))
			if err := ioctl(socket, step.request, unsafe.Pointer(&change)); err != nil {
				return fmt.Errorf("set %s of %s: %w", step.what, name, err)
			}
		}
		if address.Gateway != [4]byte{} {
			if err := addDefaultRoute(socket, name, address); err != nil {
				return fmt.Errorf("default route on %s: %w", name, err)
			}
		}
		if mtu != nil {
			return &MTUError{name, address.MTU, mtu}
		}
		return nil
	})
}

// MTUError says that all but the MTU was set.
type MTUError struct {
	Name string
	MTU  int
	Err  error
}

func (e *MTUError) Error() string { return fmt.Sprintf("set MTU %d of %s: %v", e.MTU, e.Name, e.Err) }
func (e *MTUError) Unwrap() error { return e.Err }

func addDefaultRoute(socket int, name string, address Address) error {
	device := append([]byte(name), 0)
	entry := route{
		flags: syscall.RTF_UP | syscall.RTF_GATEWAY,
		// The ioctl counts metrics from 1, for BSD's sake.
		metric: int16(min(address.Metric+1, math.MaxInt16)),
		device: &device[0],
	}
	copy(entry.destination[:], socketAddress([4]byte{}))
	copy(entry.mask[:], socketAddress([4]byte{}))
	copy(entry.gateway[:], socketAddress(address.Gateway))
	err := ioctl(socket, syscall.SIOCADDRT, unsafe.Pointer(&entry))
	if err == syscall.EEXIST {
		return nil
	}
	return err
}

func broadcast(address Address) (out [4]byte) {
	for i := range out {
		out[i] = address.IP[i] | ^address.Mask[i]
	}
	return out
}

func newRequest(name string) (r request) {
	copy(r.name[:len(r.name)-1], name)
	return r
}

// socketAddress is struct sockaddr_in with port 0.
func socketAddress(ip [4]byte) []byte {
	out := make([]byte, 16)
	binary.NativeEndian.PutUint16(out, syscall.AF_INET)
	copy(out[4:], ip[:])
	return out
}

func withSocket(work func(socket int) error) error {
	socket, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_DGRAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer syscall.Close(socket)
	return work(socket)
}

func ioctl(socket int, request uintptr, argument unsafe.Pointer) error {
	_, _, errno := syscall.Syscall(syscall.SYS_IOCTL, uintptr(socket), request, uintptr(argument))
	if errno != 0 {
		return errno
	}
	return nil
}
