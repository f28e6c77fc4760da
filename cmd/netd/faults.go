package main

import (
	"fmt"
	"math/rand/v2"
	"time"
)

// faults are injected into one port's traffic. The zero value injects none.
type faults struct {
	DropDHCP        int     `json:"drop_dhcp"`        // the next this many messages of the guest's DHCP client
	DropProbability float64 `json:"drop_probability"` // of each packet, either way
	DelayMS         int     `json:"delay_ms"`         // of each packet, either way
	SilentDNS       bool    `json:"silent_dns"`       // the resolver does not answer the guest
}

func (p *port) setFaults(f faults) error {
	if f.DropDHCP < 0 || f.DelayMS < 0 || f.DropProbability < 0 || f.DropProbability > 1 {
		return fmt.Errorf("%s: impossible faults %+v", p.id, f)
	}
	p.mu.Lock()
	p.faults = f
	p.mu.Unlock()
	return nil
}

// fault decides about one packet.
func (p *port) fault() (drop bool, delay time.Duration) {
	p.mu.Lock()
	f := p.faults
	p.mu.Unlock()
	if f.DropProbability > 0 && rand.Float64() < f.DropProbability {
		return true, 0
	}
	return false, time.Duration(f.DelayMS) * time.Millisecond
}

func (p *port) silentDNS() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.faults.SilentDNS
}

func (p *port) dropsDHCP() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.faults.DropDHCP == 0 {
		return false
	}
	p.faults.DropDHCP--
	return true
}
