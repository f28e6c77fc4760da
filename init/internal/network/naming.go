package network

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"instantenv/init/internal/atomicfile"
	"instantenv/init/internal/dhcp"
)

// setNames sets the host name and the name servers. A login works without them, so errors are only logged. A wished name,
// unless empty, overrides the server's.
func (n *Network) setNames(lease dhcp.Lease, wished string) {
	name, domain := hostName(lease), lease.Domain
	if wished != "" {
		var rest string
		if name, rest, _ = strings.Cut(wished, "."); rest != "" {
			domain = rest
		}
	}
	if err := syscall.Sethostname([]byte(name)); err != nil {
		n.Log.Consolef("host name: %v", err)
	}
	if err := writeResolvConf(n.resolvConf, lease); err != nil {
		n.Log.Consolef("resolv.conf: %v", err)
	}
	// sudo looks up the machine's own name and waits for DNS when it is nowhere else.
	if err := writeHosts(n.hosts, name, domain); err != nil {
		n.Log.Consolef("hosts: %v", err)
	}
}

// SetStaticName names a machine whose network is somebody else's, for good: /etc/hostname comes before what a DHCP server
// says (hostname(5), systemd-hostnamed.service(8)).
func SetStaticName(wished string) error {
	name, domain, _ := strings.Cut(wished, ".")
	return errors.Join(
		syscall.Sethostname([]byte(name)), replace("/etc/hostname", name+"\n"), writeHosts("/etc/hosts", name, domain),
	)
}

// hostName is the server's choice or, as EC2 names machines, made of the address.
func hostName(lease dhcp.Lease) string {
	if short, _, _ := strings.Cut(lease.Hostname, "."); short != "" {
		return short
	}
	return strings.ReplaceAll("ip-"+dhcp.Dotted(lease.IP), ".", "-")
}

// writeResolvConf replaces the file. If it is a symbolic link into /run, as systemd-resolved makes one, it replaces the
// link's target.
func writeResolvConf(path string, lease dhcp.Lease) error {
	text := "# written by instant-init\n"
	if lease.Domain != "" {
		text += "search " + lease.Domain + "\n"
	}
	for _, server := range lease.DNS {
		text += "nameserver " + dhcp.Dotted(server) + "\n"
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

// hostsMark ends the line of /etc/hosts that this program writes.
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

// replace writes a file of root's that all may read, unless it has that content already.
func replace(path, text string) error {
	if old, err := os.ReadFile(path); err == nil && string(old) == text {
		return nil
	}
	return atomicfile.Write(path, []byte(text), 0o644, atomicfile.Root)
}
