package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"instantenv/init/internal/atomicfile"
	"instantenv/init/internal/dhcp"
	"instantenv/init/internal/netif"
)

// nicPause is how often a machine without a network interface looks for one.
const nicPause = 5 * time.Millisecond

// bringUpNetwork returns when one interface has an address. Others go on trying; the one with the lowest index has
// the preferred default route.
func (m *machine) bringUpNetwork() error {
	if err := netif.Up("lo"); err != nil {
		return err
	}
	deadline := time.Now().Add(networkLimit)
	nics, err := m.findInterfaces(deadline)
	if err != nil {
		return err
	}
	m.marks.mark("nic_found")
	results := make(chan error, len(nics))
	for rank, nic := range nics {
		m.spawn("DHCP on "+nic.Name, func() error {
			lease, err := m.configure(nic, rank, deadline)
			if err == nil {
				m.marks.mark("network_up")
			}
			results <- err
			if err == nil && rank == 0 {
				m.nameHost(lease)
			}
			return nil
		})
	}
	var failures []error
	for range nics {
		err := <-results
		if err == nil {
			return nil
		}
		failures = append(failures, err)
	}
	return errors.Join(failures...)
}

func (m *machine) findInterfaces(deadline time.Time) ([]netif.Interface, error) {
	for tried := false; ; tried = true {
		nics, err := netif.List()
		if err != nil {
			return nil, err
		}
		if len(nics) > 0 {
			return nics, nil
		}
		if !tried {
			if err := m.loadDrivers(); err != nil {
				m.log.sayf("network drivers: %v", err)
			}
			continue
		}
		if time.Now().After(deadline) {
			return nil, errors.New("no network interface")
		}
		time.Sleep(nicPause)
	}
}

// loadDrivers loads what drives the network devices. A virtio device shows on its own bus only after the driver of
// the PCI device behind it is there, hence two passes.
func (m *machine) loadDrivers() error {
	tree, err := m.modules()
	if err != nil {
		return err
	}
	for _, bus := range []struct{ name, network string }{
		{"pci", "bc02"},          // base class 02: network controller
		{"virtio", "d00000001v"}, // device type 1: network card
	} {
		drivers, err := tree.Resolve(modaliases("/sys/bus/"+bus.name+"/devices", bus.network))
		if err != nil {
			return err
		}
		for _, driver := range drivers {
			if err := tree.Load(driver); err != nil {
				return err
			}
			m.log.notef("loaded %s", driver)
		}
	}
	return nil
}

// modaliases returns those of the devices on a bus that contain the given text.
func modaliases(directory, text string) []string {
	files, _ := filepath.Glob(directory + "/*/modalias") // the only error is a bad pattern
	var found []string
	for _, file := range files {
		if modalias, err := readLine(file); err == nil && strings.Contains(modalias, text) {
			found = append(found, modalias)
		}
	}
	return found
}

func (m *machine) configure(nic netif.Interface, rank int, deadline time.Time) (dhcp.Lease, error) {
	if err := netif.Up(nic.Name); err != nil {
		return dhcp.Lease{}, err
	}
	link, err := dhcp.OpenLink(nic.Index)
	if err != nil {
		return dhcp.Lease{}, fmt.Errorf("%s: %w", nic.Name, err)
	}
	defer link.Close()
	lease, err := dhcp.Obtain(link, nic.MAC, deadline)
	if err != nil {
		return lease, fmt.Errorf("%s: %w", nic.Name, err)
	}
	err = netif.Configure(nic.Name, netif.Address{
		IP: lease.IP, Mask: lease.Mask, Gateway: lease.Router, MTU: lease.MTU, Metric: 100 * rank,
	})
	var mtu *netif.MTUError
	if errors.As(err, &mtu) {
		m.log.sayf("%v", mtu)
		err = nil
	}
	return lease, err
}

// nameHost tells the machine its name and who resolves others. A login works without, so errors are only logged.
func (m *machine) nameHost(lease dhcp.Lease) {
	name := hostName(lease)
	if err := syscall.Sethostname([]byte(name)); err != nil {
		m.log.sayf("host name: %v", err)
	}
	if err := writeResolvConf("/etc/resolv.conf", lease); err != nil {
		m.log.sayf("resolv.conf: %v", err)
	}
	// sudo looks up the machine's own name and waits for DNS when it is nowhere else.
	if err := writeHosts("/etc/hosts", name, lease.Domain); err != nil {
		m.log.sayf("hosts: %v", err)
	}
}

// hostName is the server's choice or, as EC2 names machines, made of the address.
func hostName(lease dhcp.Lease) string {
	if short, _, _ := strings.Cut(lease.Hostname, "."); short != "" {
		return short
	}
	return fmt.Sprintf("ip-%d-%d-%d-%d", lease.IP[0], lease.IP[1], lease.IP[2], lease.IP[3])
}

// writeResolvConf writes what a symbolic link into /run points at, as systemd-resolved leaves one behind, and
// replaces anything else.
func writeResolvConf(path string, lease dhcp.Lease) error {
	text := "# written by instant-init\n"
	if lease.Domain != "" {
		text += "search " + lease.Domain + "\n"
	}
	for _, server := range lease.DNS {
		text += fmt.Sprintf("nameserver %d.%d.%d.%d\n", server[0], server[1], server[2], server[3])
	}
	if target, err := os.Readlink(path); err == nil {
		if !filepath.IsAbs(target) {
			target = filepath.Join(filepath.Dir(path), target)
		}
		if strings.HasPrefix(target, "/run/") {
			path = target
		}
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return replace(path, text)
}

// hostsMark ends the line of /etc/hosts that is ours.
const hostsMark = "# instant-init"

func writeHosts(path, name, domain string) error {
	old, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		old, err = []byte("127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n"), nil
	}
	if err != nil {
		return err
	}
	text := ""
	for line := range strings.Lines(string(old)) {
		if line = strings.TrimRight(line, "\n"); !strings.HasSuffix(line, hostsMark) {
			text += line + "\n"
		}
	}
	names := name
	if domain != "" {
		names = name + "." + domain + " " + name
	}
	return replace(path, text+"127.0.1.1 "+names+" "+hostsMark+"\n")
}

// replace writes a file that root owns and all may read, unless it has that content.
func replace(path, text string) error {
	if old, err := os.ReadFile(path); err == nil && string(old) == text {
		return nil
	}
	return atomicfile.Write(path, []byte(text), 0o644, atomicfile.Root)
}
