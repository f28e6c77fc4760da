package network

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"instantenv/init/internal/boottime"
	"instantenv/init/internal/inittest"
	"instantenv/init/internal/kmod"
	"instantenv/init/internal/logging"
	"instantenv/init/internal/task"
	"instantenv/init/internal/timeline"
)

// These tests want a network namespace of their own, in which they may do everything, and dnsmasq;
// tests/machines/init/test_dhcp_dnsmasq.py runs them in one.
const namespaceVariable = "INSTANT_INIT_TEST_NAMESPACE"

const longEnough = 30 * time.Second

// A segment is a veth pair: one end is the machine's, where the tests run, the other is in a namespace of its own,
// where dnsmasq is. Its network is 10.77.N.0/24, the server has .1.
type segment struct {
	t      *testing.T
	number int
	name   string // of the machine's end
	holder *exec.Cmd
	server *exec.Cmd
	leases string
	log    *inittest.Buffer
	prefix string
}

func command(t *testing.T, words ...string) string {
	t.Helper()
	text, err := exec.Command(words[0], words[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%q: %v\n%s", words, err, text)
	}
	return string(text)
}

// newSegment has no server yet.
func newSegment(t *testing.T, number int) *segment {
	t.Helper()
	if os.Getenv(namespaceVariable) == "" {
		t.Skip("not in a network namespace of its own")
	}
	s := &segment{
		t: t, number: number, name: fmt.Sprintf("eth%d", number), prefix: fmt.Sprintf("10.77.%d.", number),
		leases: filepath.Join(t.TempDir(), "leases"), log: &inittest.Buffer{},
	}
	s.holder = exec.Command("sleep", "1000")
	s.holder.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if err := s.holder.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.stopServer()
		s.unplug()
		_ = s.holder.Process.Kill()
		_ = s.holder.Wait()
		if t.Failed() {
			t.Logf("dnsmasq on %s:\n%s", s.name, s.log)
		}
	})
	return s
}

// plug makes the interfaces; the machine's end has no address and is down.
func (s *segment) plug() {
	s.t.Helper()
	command(s.t, "ip", "link", "add", s.name, "address", s.mac(), "type", "veth", "peer", "name", "server", "netns", fmt.Sprint(s.holder.Process.Pid))
	s.inside("ip", "address", "add", s.prefix+"1/24", "dev", "server")
	s.inside("ip", "link", "set", "server", "up")
}

func (s *segment) unplug() { _ = exec.Command("ip", "link", "del", s.name).Run() }

func (s *segment) inside(words ...string) string {
	s.t.Helper()
	return command(s.t, append([]string{"nsenter", "--net=/proc/" + fmt.Sprint(s.holder.Process.Pid) + "/ns/net"}, words...)...)
}

// serve starts dnsmasq for these addresses, with further options.
func (s *segment) serve(addresses string, options ...string) {
	s.t.Helper()
	s.server = exec.Command("nsenter", append([]string{
		"--net=/proc/" + fmt.Sprint(s.holder.Process.Pid) + "/ns/net", "dnsmasq", "--no-daemon", "--conf-file=/dev/null",
		"--pid-file=", "--port=0", "--log-dhcp", "--log-facility=-", "--interface=server",
		"--bind-interfaces", "--no-ping", "--leasefile-ro", "--dhcp-range=" + addresses + ",255.255.255.0,1h",
		"--dhcp-option=option:mtu,1400", "--dhcp-option=option:dns-server," + s.prefix + "1", "--domain=example.org",
	}, options...)...)
	s.server.Stdout, s.server.Stderr = s.log, s.log
	s.server.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started := strings.Count(s.log.String(), "IP range")
	if err := s.server.Start(); err != nil {
		s.t.Fatal(err)
	}
	eventually(s.t, "dnsmasq serves", func() bool { return strings.Count(s.log.String(), "IP range") > started })
}

func (s *segment) stopServer() {
	if s.server != nil {
		_ = s.server.Process.Kill()
		_ = s.server.Wait()
		s.server = nil
	}
}

// said counts what dnsmasq has logged, for example DHCPACK.
func (s *segment) said(word string) int { return strings.Count(s.log.String(), word) }

// address is what the machine's end has now, or "".
func (s *segment) address() string {
	text, _ := exec.Command("ip", "-4", "-o", "address", "show", "dev", s.name).Output()
	_, rest, _ := strings.Cut(string(text), "inet ")
	address, _, _ := strings.Cut(rest, " ")
	return address
}

func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for end := time.Now().Add(longEnough); !condition(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within %s: %s", longEnough, what)
		}
	}
}

// networkUnderTest has the veth ends eth* as its interfaces.
func networkUnderTest(t *testing.T) (*Network, *inittest.Buffer) {
	t.Helper()
	console, directory := &inittest.Buffer{}, t.TempDir()
	log, marks := &logging.Logger{Journal: io.Discard, Console: console}, timeline.New(boottime.Now, true)
	n := New(Config{
		Log: log, Marks: marks, Serving: make(chan struct{}),
		Tasks:   &task.Group{Log: log, Marks: marks, Fatal: func(cause error) { log.Consolef("fatal: %v", cause) }},
		Modules: func() (*kmod.Tree, error) { return nil, errors.New("no modules here") },
	})
	n.wanted = func(name string) bool { return strings.HasPrefix(name, "eth") }
	n.resolvConf, n.hosts = filepath.Join(directory, "resolv.conf"), filepath.Join(directory, "hosts")
	t.Cleanup(func() {
		close(n.stop)
		n.mutex.Lock()
		defer n.mutex.Unlock()
		for _, nic := range n.nics {
			n.drop(nic)
		}
	})
	return n, console
}

func bringUp(t *testing.T, n *Network) {
	t.Helper()
	up := n.Tasks.Async("network", n.BringUp)
	select {
	case err := <-up:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(longEnough):
		t.Fatalf("no network: waiting for %s", n.waitingFor())
	}
}

func TestDnsmasqGivesALease(t *testing.T) {
	s := newSegment(t, 1)
	s.plug()
	s.serve("10.77.1.10,10.77.1.10", "--dhcp-host="+s.mac()+",web-7")
	n, _ := networkUnderTest(t)
	bringUp(t, n)
	if got := s.address(); got != "10.77.1.10/24" {
		t.Errorf("the address is %q", got)
	}
	if text := command(t, "ip", "-4", "address", "show", "dev", s.name); !strings.Contains(text, "valid_lft forever") {
		t.Errorf("the address has a lifetime: %s", text)
	}
	if text := command(t, "ip", "link", "show", "dev", s.name); !strings.Contains(text, "mtu 1400") {
		t.Errorf("the MTU is not the server's: %s", text)
	}
	if text := command(t, "ip", "route"); !strings.HasPrefix(text, "default via 10.77.1.1 dev eth1 proto dhcp src 10.77.1.10") {
		t.Errorf("routes: %s", text)
	}
	command(t, "ip", "route", "get", "127.0.0.1") // lo is up
	eventually(t, "names", func() bool { name, _ := os.Hostname(); return name == "web-7" })
	if got := inittest.Read(t, n.resolvConf); got != "# written by instant-init\nsearch example.org\nnameserver 10.77.1.1\n" {
		t.Errorf("resolv.conf: %q", got)
	}
	n.SetHostname("build-7.internal")
	if name, _ := os.Hostname(); name != "build-7" {
		t.Errorf("the host name is %q", name)
	}
	if got := inittest.Read(t, n.hosts); !strings.Contains(got, "127.0.1.1 build-7.internal build-7 ") {
		t.Errorf("hosts: %q", got)
	}
	// What somebody took away, a check brings back, without another lease.
	command(t, "ip", "route", "del", "default")
	asked := s.said("DHCPDISCOVER(")
	n.Resumed()
	eventually(t, "the default route is back", func() bool { return strings.HasPrefix(command(t, "ip", "route"), "default") })
	if s.said("DHCPDISCOVER(") != asked {
		t.Errorf("it began again:\n%s", s.log)
	}
}

func TestDnsmasqComesUpLate(t *testing.T) {
	s := newSegment(t, 1)
	s.plug()
	n, console := networkUnderTest(t)
	up := n.Tasks.Async("network", n.BringUp)
	eventually(t, "a word of what is missing", func() bool {
		return strings.Contains(console.String(), "no network after 5 s: waiting for a DHCP answer on eth1")
	})
	s.serve("10.77.1.10,10.77.1.20")
	if err := <-up; err != nil {
		t.Fatal(err)
	}
	eventually(t, "an end of the story", func() bool { return strings.Contains(console.String(), "the network is up") })
}

func TestDnsmasqRenewsAShortLease(t *testing.T) {
	s := newSegment(t, 1)
	s.plug()
	// dnsmasq gives two minutes at least, but any T2, and then a T1 a little before that.
	times := []string{"--dhcp-option-force=option:T2,4"}
	s.serve("10.77.1.10,10.77.1.20", times...)
	n, console := networkUnderTest(t)
	bringUp(t, n)
	first, asked, given := s.address(), s.said("DHCPDISCOVER("), s.said("DHCPACK(")
	eventually(t, "two renewals", func() bool { return s.said("DHCPACK(") >= given+2 })
	if s.said("DHCPDISCOVER(") != asked {
		t.Errorf("not renewed, but obtained again:\n%s", s.log)
	}
	if s.address() != first {
		t.Errorf("%s became %s", first, s.address())
	}
	// The server forgets its leases and has others now: it refuses, and the machine takes what it is given.
	s.stopServer()
	s.serve("10.77.1.30,10.77.1.39", append(times, "--dhcp-authoritative")...)
	eventually(t, "another address", func() bool { return strings.HasPrefix(s.address(), "10.77.1.3") })
	if s.said("DHCPNAK(") == 0 {
		t.Errorf("it was not refused:\n%s", s.log)
	}
	if text := command(t, "ip", "-4", "address", "show", "dev", s.name); strings.Count(text, "inet ") != 1 {
		t.Errorf("the old address is still there: %s", text)
	}
	if text := command(t, "ip", "route"); strings.Count(text, "default") != 1 || !strings.Contains(text, "src 10.77.1.3") {
		t.Errorf("routes: %s", text)
	}
	for _, word := range []string{"the DHCP server refused", "the address changes from " + strings.TrimSuffix(first, "/24")} {
		if !strings.Contains(console.String(), word) {
			t.Errorf("nobody was told %q: %s", word, console)
		}
	}
}

func TestDnsmasqIsAskedAgainAfterASleep(t *testing.T) {
	s := newSegment(t, 1)
	s.plug()
	s.serve("10.77.1.10,10.77.1.10")
	n, _ := networkUnderTest(t)
	bringUp(t, n)
	// The server is another one now, and silent to who has a lease that it does not know.
	s.stopServer()
	s.serve("10.77.1.30,10.77.1.30")
	n.Resumed()
	eventually(t, "another address", func() bool { return s.address() == "10.77.1.30/24" })
}

func TestDnsmasqIsAskedAgainWhenTheLinkComesBack(t *testing.T) {
	s := newSegment(t, 1)
	s.plug()
	s.serve("10.77.1.10,10.77.1.10")
	n, _ := networkUnderTest(t)
	bringUp(t, n)
	given := s.said("DHCPACK(")
	s.inside("ip", "link", "set", "server", "down")
	eventually(t, "the link is lost", func() bool {
		n.mutex.Lock()
		defer n.mutex.Unlock()
		return !n.first().Linked
	})
	if s.address() != "10.77.1.10/24" {
		t.Errorf("the address went with the link: %q", s.address())
	}
	s.inside("ip", "link", "set", "server", "up")
	eventually(t, "another answer", func() bool { return s.said("DHCPACK(") > given })
}

func TestInterfacesComeAndGo(t *testing.T) {
	one, two := newSegment(t, 1), newSegment(t, 2)
	n, console := networkUnderTest(t)
	up := n.Tasks.Async("network", n.BringUp)
	eventually(t, "a word of what is missing", func() bool {
		return strings.Contains(console.String(), "waiting for a network interface")
	})
	// The first one is late, the second one later: both are configured.
	one.plug()
	one.serve("10.77.1.10,10.77.1.10")
	if err := <-up; err != nil {
		t.Fatal(err)
	}
	two.plug()
	two.serve("10.77.2.10,10.77.2.10")
	eventually(t, "the second one's address", func() bool { return two.address() == "10.77.2.10/24" })
	// The default stays the first one's, and what comes from the second one's address leaves by it.
	for from, by := range map[string]string{"10.77.1.10": "eth1", "10.77.2.10": "eth2"} {
		if text := command(t, "ip", "route", "get", "192.0.2.1", "from", from); !strings.Contains(text, "dev "+by) {
			t.Errorf("from %s: %s", from, text)
		}
	}
	if text := command(t, "ip", "route", "get", "192.0.2.1"); !strings.Contains(text, "dev eth1") {
		t.Errorf("the default route: %s", text)
	}
	eventually(t, "both reach their servers", func() bool {
		return reaches("10.77.1.10", "10.77.1.1") && reaches("10.77.2.10", "10.77.2.1")
	})
	// It goes, with all that was its own, and comes back.
	two.unplug()
	eventually(t, "the rule has gone", func() bool { return !strings.Contains(command(t, "ip", "rule"), "10.77.2.10") })
	n.mutex.Lock()
	if len(n.nics) != 1 {
		t.Errorf("%d interfaces are known", len(n.nics))
	}
	n.mutex.Unlock()
	two.plug()
	eventually(t, "its address", func() bool { return two.address() == "10.77.2.10/24" })
	// The first one goes: the other one's names and routes are left.
	one.unplug()
	eventually(t, "the default route by the other one", func() bool {
		return strings.HasPrefix(command(t, "ip", "route"), "default via 10.77.2.1 dev eth2")
	})
	eventually(t, "its resolver", func() bool { return strings.Contains(inittest.Read(t, n.resolvConf), "10.77.2.1") })
	if strings.Contains(console.String(), "fatal") {
		t.Error(console)
	}
}

// reaches connects to a port that nobody listens at, which only the host itself can refuse.
func reaches(from, to string) bool {
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}, Timeout: time.Second}
	connection, err := dialer.Dial("tcp", to+":9")
	if err == nil {
		connection.Close()
	}
	return errors.Is(err, syscall.ECONNREFUSED)
}

// mac is the same each time it is plugged in, as a card's would be.
func (s *segment) mac() string { return fmt.Sprintf("02:00:00:00:00:%02d", s.number) }

// TestContainersInterfacesAreLeftAlone: Docker's bridge and the ends of its veth pairs are of type ether, and none of ours:
// they are not brought up, and nobody asks for a lease on them.
func TestContainersInterfacesAreLeftAlone(t *testing.T) {
	if os.Getenv(namespaceVariable) == "" {
		t.Skip("not in a network namespace of its own")
	}
	// What is mounted is of the namespace that it was mounted in.
	command(t, "mount", "-t", "sysfs", "sysfs", "/sys")
	command(t, "ip", "link", "add", "docker0", "type", "bridge")
	command(t, "ip", "link", "add", "veth1a2b3c4", "type", "veth", "peer", "name", "eth0")
	command(t, "ip", "link", "set", "veth1a2b3c4", "master", "docker0")
	names := []string{"docker0", "veth1a2b3c4", "eth0"}
	t.Cleanup(func() {
		command(t, "ip", "link", "del", "docker0")
		command(t, "ip", "link", "del", "eth0")
	})
	n := New(Config{Log: &logging.Logger{Journal: io.Discard, Console: io.Discard}, Marks: timeline.New(boottime.Now, true)})
	if err := n.look(); err != nil {
		t.Fatal(err)
	}
	if len(n.nics) != 0 {
		t.Errorf("taken: %v", n.nics)
	}
	for _, name := range names {
		if _, err := os.Stat("/sys/class/net/" + name); err != nil {
			t.Errorf("%s is not there to be taken: %v", name, err)
		}
		if state := command(t, "ip", "-o", "link", "show", name); strings.Contains(state, ",UP") {
			t.Errorf("brought up: %s", state)
		}
	}
}
