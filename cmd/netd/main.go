// Command netd is the network of one localec2: the VPCs that its guests are in (vpcs.go).
//
// QEMU connects each network interface to a Unix socket of netd (-netdev stream), and netd handles every frame:
//
//   - It answers ARP and DHCP.
//   - It serves IMDS at 169.254.169.254 to the instance that asks, DNS at the VPC's base address + 2 and at
//     169.254.169.253, and NTP at 169.254.169.123.
//   - It passes packets between guests as the security groups of both sides admit, statefully.
//   - With -egress it carries connections to the internet (egress.go).
//   - It forwards a guest's port from the guest's public address, on the host's loopback, while the guest listens
//     on that port; half-open SYNs find out (portforward.go).
//
// It needs no privileges. It is a child of the server and ends with it: commands are JSON objects, one a line, on
// standard input, answers follow on standard output in the same order, and the end of standard input ends netd.
//
// It is one package. ARP, DHCP, egress and port forwards all work on the tables of ports and security groups under one
// lock; packages of their own would have to export the tables or take a callback for each look-up. DNS and NTP need
// little of the network, but are too small to be worth a package each. The metadata service is internal/imds.
//
//	{"id": 1, "do": "groups", "groups": {"sg-1": [{"protocol": "tcp", "from": 22, "to": 22, "cidr": "127.0.0.1/32"}]}}
//	{"id": 2, "do": "port", "port": {"id": "eni-1", "vpc": "vpc-1", "socket": "/run/x/eni-1", "mac": "02:...", ...}}
//	{"id": 3, "do": "faults", "name": "eni-1", "faults": {"drop_dhcp": 3}}
//	{"id": 4, "do": "remove", "name": "eni-1"}
//	{"id": 5, "do": "status"}
//
// An answer is {"id": 1}, with "error" when it failed. Between answers, {"event": "up", "port": "eni-1"} says
// that a guest has used its address for the first time since it booted. A "port" command for a known port changes its
// public address and its groups, while the guest runs.
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"os"
	"slices"
	"strings"
	"sync"
)

func main() {
	log.SetFlags(log.LstdFlags | log.Lmsgprefix)
	log.SetPrefix("netd: ")
	if err := run(os.Args[1:], os.Stdin, os.Stdout); err != nil {
		log.Fatal(err)
	}
}

func run(arguments []string, in io.Reader, out io.Writer) error {
	var c config
	flags := flag.NewFlagSet("netd", flag.ContinueOnError)
	flags.StringVar(&c.domain, "domain", "ec2.internal", "`domain` of private host names")
	flags.BoolVar(&c.allowEgress, "egress", false, "let guests reach the internet")
	flags.IntVar(&c.portOffset, "port-offset", 0, "guests' ports below 1024 are this `much` higher on the host")
	if err := flags.Parse(arguments); err != nil {
		return err
	}
	decoder, encoder := json.NewDecoder(in), &lockedEncoder{encoder: json.NewEncoder(out)}
	v := newVPCs(c, func(p *port) {
		_ = encoder.Encode(event{Event: "up", Port: p.id}) // a server that stopped reading closes our input, too
	})
	defer v.close()
	for {
		var command command
		if err := decoder.Decode(&command); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("standard input: %w", err)
		}
		if err := encoder.Encode(v.dispatch(command)); err != nil {
			return fmt.Errorf("standard output: %w", err)
		}
	}
}

// lockedEncoder is an encoder for several goroutines.
type lockedEncoder struct {
	mu      sync.Mutex
	encoder *json.Encoder
}

func (e *lockedEncoder) Encode(v any) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.encoder.Encode(v)
}

type event struct {
	Event string `json:"event"`
	Port  string `json:"port"`
}

type command struct {
	ID     int               `json:"id"`
	Do     string            `json:"do"`
	Name   string            `json:"name"` // of a port
	Port   portConfig        `json:"port"`
	Groups map[string][]rule `json:"groups"`
	Faults faults            `json:"faults"`
}

type answer struct {
	ID    int                   `json:"id"`
	Error string                `json:"error,omitempty"`
	Ports map[string]portStatus `json:"ports,omitempty"`
}

// portStatus is a port's part of the answer to "status".
type portStatus struct {
	Up   bool     `json:"up"`   // the guest has sent a packet
	Open []string `json:"open"` // where netd listens for clients
}

// dispatch carries out one command.
func (v *vpcs) dispatch(c command) answer {
	var err error
	a := answer{ID: c.ID}
	switch c.Do {
	case "groups":
		err = v.setGroups(c.Groups)
	case "port":
		err = v.setPort(c.Port)
	case "remove":
		v.removePort(c.Name)
	case "faults":
		if p := v.port(c.Name); p == nil {
			err = fmt.Errorf("there is no port %q", c.Name)
		} else {
			err = p.setFaults(c.Faults)
		}
	case "status":
		a.Ports = v.status()
	default:
		err = fmt.Errorf("unknown command %q", c.Do)
	}
	if err != nil {
		a.Error = err.Error()
	}
	return a
}

func (n *network) status() map[string]portStatus {
	n.mu.RLock()
	defer n.mu.RUnlock()
	ports := map[string]portStatus{}
	for id, p := range n.ports {
		ports[id] = portStatus{Up: p.up.Load(), Open: p.forwards.openAt()}
	}
	return ports
}

// openAt returns the addresses at which netd listens for clients of the guest.
func (pf *portForwards) openAt() []string {
	pf.mu.Lock()
	defer pf.mu.Unlock()
	var open []string
	for _, f := range pf.byPort {
		if f.listener != nil {
			open = append(open, f.listener.Addr().String())
		}
	}
	slices.SortFunc(open, strings.Compare)
	return open
}
