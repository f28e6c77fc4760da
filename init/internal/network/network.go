// Package network keeps the machine's network interfaces configured.
package network

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"instantenv/init/internal/dhcp"
	"instantenv/init/internal/kmod"
	"instantenv/init/internal/logging"
	"instantenv/init/internal/netif"
	"instantenv/init/internal/netlink"
	"instantenv/init/internal/task"
	"instantenv/init/internal/timeline"
)

// A machine without a network reports on the console what it waits for: after firstWord, then every nextWord.
const (
	firstWord = 5 * time.Second
	nextWord  = 30 * time.Second
)

const retryPause = time.Second

// Every interface has a metric and a routing table by its index. amazon-ec2-net-utils numbers tables in the same way.
const (
	metricStep = 100
	firstTable = 10000
)

// A Config is what a Network needs of the machine.
type Config struct {
	Log     *logging.Logger
	Marks   *timeline.Timeline
	Tasks   *task.Group
	Modules func() (*kmod.Tree, error) // of the running kernel
	Serving <-chan struct{}            // closed when people can log in, and drivers of further cards may be loaded
}

// A Network is all network interfaces of the machine. Each is configured by DHCP when it appears, in parallel with the
// others, and removed when it disappears. The one with the lowest index, which is the first that the kernel found, has the
// preferred default route and names the machine. IPv6 is left to the kernel, and nothing waits for it.
//
// A rule for each address sends packets with that source by its interface: EC2 drops packets that leave by another one.
type Network struct {
	Config
	wanted            func(name string) bool // which interfaces are ours
	resolvConf, hosts string

	changed chan struct{} // an interface came, went, or has another link
	devices chan struct{} // a device came that may lack a driver
	up      chan struct{} // closed when the first interface has an address
	stop    chan struct{} // closed by tests

	mutex    sync.Mutex
	nics     map[int]*nic // by index
	drivers  error        // why there may be no interface
	hostname string       // wished for in user data
	named    *dhcp.Lease  // whose names the machine has
}

// A nic is one interface. The network's mutex guards it.
type nic struct {
	netif.Interface
	client  *dhcp.Client
	table   int         // of routing; 0 for the first interface, whose routes the main table prefers
	lease   *dhcp.Lease // nil before the first one
	address netif.Address
	trouble error // why there is no lease, or no longer
}

// New configures nothing before BringUp.
func New(config Config) *Network {
	return &Network{
		Config: config, wanted: netif.HasDevice, resolvConf: "/etc/resolv.conf", hosts: "/etc/hosts",
		changed: make(chan struct{}, 1), devices: make(chan struct{}, 1), up: make(chan struct{}),
		stop: make(chan struct{}), nics: map[int]*nic{},
	}
}

// BringUp returns when one interface has an address. It has no time limit.
func (n *Network) BringUp() error {
	if err := n.start(); err != nil {
		return err
	}
	began := time.Now()
	for pause := firstWord; ; pause = nextWord {
		select {
		case <-n.up:
			if time.Since(began) >= firstWord {
				n.Log.Consolef("the network is up")
			}
			return nil
		case <-time.After(pause):
			n.Log.Consolef("no network after %d s: waiting for %s", int(time.Since(began).Seconds()), n.waitingFor())
		}
	}
}

// Resumed makes every client check its lease after hibernation, during which the leases' time went on.
func (n *Network) Resumed() error {
	n.mutex.Lock()
	defer n.mutex.Unlock()
	for _, nic := range n.nics {
		nic.client.Check()
	}
	return nil
}

// start subscribes to changes before it lists the interfaces, so that none is missed.
func (n *Network) start() error {
	links, err := netlink.WatchLinks()
	if err != nil {
		return err
	}
	devices, err := netlink.WatchDevices(isNetworkDevice)
	if err != nil {
		return err
	}
	if err := netif.Up(netif.Loopback); err != nil {
		return fmt.Errorf("lo: %w", err)
	}
	n.Tasks.Spawn("network links", func() error { return n.listen(links, n.changed) })
	n.Tasks.Spawn("network devices", func() error { return n.listen(devices, n.devices) })
	n.Tasks.Spawn("network interfaces", n.watch)
	return nil
}

func (n *Network) listen(watcher *netlink.Watcher, changed chan<- struct{}) error {
	go func() {
		<-n.stop
		watcher.Close()
	}()
	for {
		switch err := watcher.Wait(); {
		case errors.Is(err, os.ErrClosed):
			return nil
		case err != nil: // then it is polled
			n.Log.Journalf("netlink: %v", err)
			time.Sleep(retryPause)
		}
		notify(changed)
	}
}

// notify wakes the receiver, unless it is about to run anyway.
func notify(changed chan<- struct{}) {
	select {
	case changed <- struct{}{}:
	default:
	}
}

func (n *Network) watch() error {
	n.lookAgain()
	// Until there is a login only a machine without any interface loads drivers; another card's can wait.
	if n.count() == 0 {
		n.loadDrivers()
		n.lookAgain()
	}
	serving := n.Serving
	for {
		select {
		case <-n.stop:
			return nil
		case <-n.changed:
		case <-n.devices:
			n.loadDrivers()
		case <-serving:
			serving = nil
			n.loadDrivers()
		}
		n.lookAgain()
	}
}

// lookAgain lists the interfaces, and tries again a second later if that fails: an error is no reason to give up a machine.
func (n *Network) lookAgain() {
	if err := n.look(); err != nil {
		n.Log.Journalf("network interfaces: %v", err)
		time.AfterFunc(retryPause, func() { notify(n.changed) })
	}
}

func (n *Network) count() int {
	n.mutex.Lock()
	defer n.mutex.Unlock()
	return len(n.nics)
}

// loadDrivers loads drivers and says what is missing, once.
func (n *Network) loadDrivers() {
	err := loadMissingDrivers(n.Modules, n.Log)
	n.mutex.Lock()
	news := err != nil && (n.drivers == nil || n.drivers.Error() != err.Error())
	n.drivers = err
	n.mutex.Unlock()
	if news {
		n.Log.Consolef("network drivers: %v", err)
	}
}

// look compares the interfaces that exist with those that are known.
func (n *Network) look() error {
	present, err := netif.List(n.wanted)
	if err != nil {
		return err
	}
	n.mutex.Lock()
	defer n.mutex.Unlock()
	fresh := false
	for _, found := range present {
		if n.nics[found.Index] == nil {
			fresh = true
			if err := netif.Up(found.Index); err != nil {
				n.Log.Consolef("%s: %v", found.Name, err) // it may have gone again
			}
		}
	}
	if fresh { // which of them have a link, now that they are up
		if present, err = netif.List(n.wanted); err != nil {
			return err
		}
	}
	there := map[int]bool{}
	for _, found := range present {
		there[found.Index] = true
		known := n.nics[found.Index]
		if known == nil {
			n.adopt(found)
			continue
		}
		if found.Linked && !known.Linked {
			known.client.Check()
		}
		known.Interface = found
	}
	for index, gone := range n.nics {
		if !there[index] {
			n.drop(gone)
		}
	}
	return nil
}

// adopt starts a DHCP client for an interface.
func (n *Network) adopt(found netif.Interface) {
	n.Marks.Mark("nic_found")
	added := &nic{Interface: found, table: n.table(found.Index)}
	added.client = dhcp.NewClient(dhcp.Hooks{
		MAC:       found.MAC,
		Raw:       func() (dhcp.Link, error) { return dhcp.OpenRaw(found.Index) },
		UDP:       func(server [4]byte) (dhcp.Link, error) { return dhcp.OpenUDP(found.Index, server) },
		OnLease:   func(lease dhcp.Lease) error { return n.leased(added, lease) },
		OnTrouble: func(err error) { n.troubled(added, err) },
	})
	n.nics[found.Index] = added
	n.Tasks.Spawn("DHCP on "+found.Name, func() error {
		added.client.Run()
		return nil
	})
}

// drop removes an interface that has disappeared.
func (n *Network) drop(gone *nic) {
	delete(n.nics, gone.Index)
	gone.client.Close()
	n.Log.Journalf("%s has gone", gone.Name)
	if gone.lease == nil {
		return
	}
	if err := netif.Forget(gone.Index, gone.address); err != nil {
		n.Log.Journalf("%s: %v", gone.Name, err)
	}
	n.rename()
}

func (n *Network) troubled(nic *nic, err error) {
	n.mutex.Lock()
	defer n.mutex.Unlock()
	if n.nics[nic.Index] != nic {
		return
	}
	news := nic.trouble == nil || nic.trouble.Error() != err.Error()
	nic.trouble = err
	if news {
		n.Log.Consolef("%s: %v", nic.Name, err)
	}
}

// leased configures an interface by its lease.
func (n *Network) leased(nic *nic, lease dhcp.Lease) error {
	n.mutex.Lock()
	defer n.mutex.Unlock()
	if n.nics[nic.Index] != nic {
		return os.ErrClosed
	}
	address := netif.Address{
		IP: lease.IP, Mask: lease.Mask, Gateway: lease.Router, MTU: lease.MTU,
		Metric: metricStep * nic.Index, Table: nic.table,
	}
	if nic.lease != nil && (nic.address.IP != address.IP || nic.address.Mask != address.Mask) {
		n.Log.Consolef("%s: the address changes from %s", nic.Name, dhcp.Dotted(nic.address.IP))
		if err := netif.Forget(nic.Index, nic.address); err != nil {
			n.Log.Consolef("%s: %v", nic.Name, err)
		}
	}
	err := netif.Configure(nic.Index, address)
	var mtu *netif.MTUError
	if errors.As(err, &mtu) {
		n.Log.Consolef("%s: %v", nic.Name, mtu)
		err = nil
	}
	if err != nil {
		return err
	}
	n.Log.Journalf("%s has %s from %s for %s", nic.Name, dhcp.Dotted(lease.IP), dhcp.Dotted(lease.Server), lease.Duration)
	nic.lease, nic.address, nic.trouble = &lease, address, nil
	select {
	case <-n.up:
	default:
		n.Marks.Mark("network_up")
		close(n.up)
	}
	n.rename()
	return nil
}

func (n *Network) table(index int) int {
	for other := range n.nics {
		if other < index {
			return firstTable + index
		}
	}
	return 0
}

// first is the interface with the lowest index that has an address, or nil.
func (n *Network) first() *nic {
	var first *nic
	for _, nic := range n.nics {
		if nic.lease != nil && (first == nil || nic.Index < first.Index) {
			first = nic
		}
	}
	return first
}

// rename gives the machine the names of its first interface's lease.
func (n *Network) rename() {
	if first := n.first(); first != nil && first.lease != n.named {
		n.named = first.lease
		n.setNames(*first.lease, n.hostname)
	}
}

// SetHostname sets the machine's name, which no DHCP server changes then, for example build-7 or build-7.example.org.
// What goes wrong is logged, since a later lease repeats it.
func (n *Network) SetHostname(name string) error {
	n.mutex.Lock()
	defer n.mutex.Unlock()
	n.hostname, n.named = name, nil
	n.rename()
	return nil
}

// waitingFor describes what is missing before the machine has a network.
func (n *Network) waitingFor() string {
	n.mutex.Lock()
	defer n.mutex.Unlock()
	if len(n.nics) == 0 {
		if n.drivers != nil {
			return fmt.Sprintf("a network interface (%v)", n.drivers)
		}
		return "a network interface"
	}
	var missing []string
	for _, nic := range n.nics {
		switch {
		case !nic.Linked:
			missing = append(missing, "a link on "+nic.Name)
		case nic.trouble != nil:
			missing = append(missing, fmt.Sprintf("an address for %s (%v)", nic.Name, nic.trouble))
		default:
			missing = append(missing, "a DHCP answer on "+nic.Name)
		}
	}
	slices.Sort(missing)
	return strings.Join(missing, ", ")
}
