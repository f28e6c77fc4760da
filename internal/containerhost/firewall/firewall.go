// Package firewall publishes ports by rules of our own, which are replaced at once, and keeps containers from the metadata
// service.
//
// Docker cannot move a published port from one container to another: it would have to make the new one again, without a
// check of it, while nobody answers. Rules in a chain of ours can: iptables-restore replaces a chain in one transaction, new
// connections go to the new container from then on, and those that are open stay with the old one (conntrack translates
// the first packet of a connection only). Containers see the caller's address, which a proxy would hide.
//
// The accepting rule is in DOCKER-USER, the chain that Docker leaves to us and passes before its own
// (https://docs.docker.com/engine/network/packet-filtering-firewalls/): its policy for forwarded packets is DROP.
//
// Ports are published on the machine's own addresses, not on 127.0.0.1, and a container does not reach its own published port.
package firewall

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"time"

	"instantenv/internal/containerhost/config"
)

const chain = "CONTAINER-HOST"

// metadata is the address of EC2's instance metadata service.
const metadata = "169.254.169.254/32"

// limit of one call of iptables; it waits for a lock that Docker may hold.
const limit = 30 * time.Second

// A jump leads from a chain of the system's to ours.
type jump struct {
	table, chain string
	match        []string
}

var jumps = []jump{
	{"filter", "DOCKER-USER", nil},
	{"nat", "PREROUTING", []string{"-m", "addrtype", "--dst-type", "LOCAL"}},
	{"nat", "OUTPUT", []string{"!", "-d", "127.0.0.0/8", "-m", "addrtype", "--dst-type", "LOCAL"}},
}

// Rules is the whole of both chains, as iptables-restore takes it. With address "" nothing is published.
func Rules(ports []config.Port, address string) string {
	var text strings.Builder
	fmt.Fprintf(&text, "*nat\n:%s - [0:0]\n", chain)
	if address != "" {
		for _, port := range ports {
			fmt.Fprintf(&text, "-A %s -p tcp -m tcp --dport %d -j DNAT --to-destination %s:%d\n",
				chain, port.Host, address, port.Container)
		}
	}
	fmt.Fprintf(&text, "COMMIT\n*filter\n:%s - [0:0]\n", chain)
	// Before anything else: what is forwarded comes from a container.
	fmt.Fprintf(&text, "-A %s -d %s -j REJECT\n", chain, metadata)
	fmt.Fprintf(&text, "-A %s -o docker0 -m conntrack --ctstate DNAT --ctdir ORIGINAL -j ACCEPT\n", chain)
	text.WriteString("COMMIT\n")
	return text.String()
}

// A Run runs a program with an input.
type Run func(ctx context.Context, input string, argv ...string) error

// Command is the Run of a real machine.
func Command(ctx context.Context, input string, argv ...string) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	command := exec.CommandContext(ctx, argv[0], argv[1:]...)
	command.Stdin = strings.NewReader(input)
	output, err := command.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, bytes.TrimSpace(output))
	}
	return nil
}

// A Firewall is this machine's.
type Firewall struct{ Run Run }

// Publish points the ports at a container's address and makes sure that both chains are passed. It may be called again at
// any time: Docker makes its chains anew when it starts.
func (f Firewall) Publish(ctx context.Context, ports []config.Port, address string) error {
	// --noflush leaves all other chains alone, and empties the ones that the input declares.
	if err := f.Run(ctx, Rules(ports, address), "iptables-restore", "--noflush", "--wait"); err != nil {
		return err
	}
	for _, jump := range jumps {
		rule := slices.Concat([]string{jump.chain}, jump.match, []string{"-j", chain})
		if f.iptables(ctx, jump.table, "--check", rule) == nil {
			continue
		}
		if err := f.iptables(ctx, jump.table, "--insert", rule); err != nil {
			return err
		}
	}
	return nil
}

func (f Firewall) iptables(ctx context.Context, table, verb string, rule []string) error {
	return f.Run(ctx, "", slices.Concat([]string{"iptables", "--wait", "--table", table, verb}, rule)...)
}
