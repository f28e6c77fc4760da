package main

import (
	"fmt"
	"net/netip"
)

// vpcs are the networks of this process: one for each VPC that has interfaces, with addresses, connections and
// services of its own. Two VPCs may have the same addresses, and nothing leads from one to the other. They are used by
// the loop that reads commands alone.
type vpcs struct {
	config config
	onUp   func(*port)
	groups map[string][]rule
	byID   map[string]*vpc
}

// vpc is one network and what it runs beside its interfaces.
type vpc struct {
	*network
	done chan struct{} // ends the probes
}

func newVPCs(c config, onUp func(*port)) *vpcs {
	return &vpcs{config: c, onUp: onUp, byID: map[string]*vpc{}}
}

// open returns the network of an interface's VPC, which it makes for the first one.
func (v *vpcs) open(c portConfig) (*vpc, error) {
	if known := v.byID[c.VPC]; known != nil {
		return known, nil
	}
	cidr, err := netip.ParsePrefix(c.VPCCIDR)
	if err != nil || !cidr.Addr().Is4() {
		return nil, fmt.Errorf("%s: %q is not the CIDR block of a VPC", c.ID, c.VPCCIDR)
	}
	own := v.config
	own.vpc = cidr.Masked()
	n, err := newNetwork(own)
	if err != nil {
		return nil, err
	}
	n.onUp = v.onUp
	n.setGroups(v.groups)
	opened := &vpc{n, make(chan struct{})}
	go n.probeGuests(opened.done)
	v.byID[c.VPC] = opened
	return opened, nil
}

// closeUnused ends the networks that have no interfaces any more.
func (v *vpcs) closeUnused() {
	for id, n := range v.byID {
		if len(n.status()) == 0 {
			delete(v.byID, id)
			n.end()
		}
	}
}

func (n *vpc) end() {
	close(n.done)
	n.close()
}

func (v *vpcs) setGroups(groups map[string][]rule) error {
	if err := parseRanges(groups); err != nil {
		return err
	}
	v.groups = groups
	for _, n := range v.byID {
		n.setGroups(groups)
	}
	return nil
}

func (v *vpcs) setPort(c portConfig) error {
	n, err := v.open(c)
	if err != nil {
		return err
	}
	defer v.closeUnused() // when this was to be its first one, and failed
	return n.setPort(c)
}

func (v *vpcs) removePort(id string) {
	for _, n := range v.byID {
		n.removePort(id)
	}
	v.closeUnused()
}

// port returns an interface by its id, nil when there is none.
func (v *vpcs) port(id string) *port {
	for _, n := range v.byID {
		n.mu.RLock()
		p := n.ports[id]
		n.mu.RUnlock()
		if p != nil {
			return p
		}
	}
	return nil
}

func (v *vpcs) status() map[string]portStatus {
	all := map[string]portStatus{}
	for _, n := range v.byID {
		for id, status := range n.status() {
			all[id] = status
		}
	}
	return all
}

func (v *vpcs) close() {
	for _, n := range v.byID {
		n.end()
	}
}
