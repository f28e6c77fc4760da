package firewall_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"instantenv/internal/containerhost/config"
	"instantenv/internal/containerhost/firewall"
)

var ports = []config.Port{{Host: 80, Container: 8080}, {Host: 443, Container: 8443}}

func TestRules(t *testing.T) {
	const want = `*nat
:CONTAINER-HOST - [0:0]
-A CONTAINER-HOST -p tcp -m tcp --dport 80 -j DNAT --to-destination 172.17.0.2:8080
-A CONTAINER-HOST -p tcp -m tcp --dport 443 -j DNAT --to-destination 172.17.0.2:8443
COMMIT
*filter
:CONTAINER-HOST - [0:0]
-A CONTAINER-HOST -d 169.254.169.254/32 -j REJECT
-A CONTAINER-HOST -o docker0 -m conntrack --ctstate DNAT --ctdir ORIGINAL -j ACCEPT
COMMIT
`
	if got := firewall.Rules(ports, "172.17.0.2"); got != want {
		t.Errorf("got\n%s", got)
	}
	if closed := firewall.Rules(ports, ""); strings.Contains(closed, "DNAT --to") || !strings.Contains(closed, "REJECT") {
		t.Errorf("without an address:\n%s", closed)
	}
}

// tables stands in for iptables: it keeps the jumps, and what was restored.
type tables struct {
	jumps    []string
	restored string
	fails    string
}

func (s *tables) run(_ context.Context, input string, argv ...string) error {
	line := strings.Join(argv, " ")
	if s.fails != "" && strings.Contains(line, s.fails) {
		return errors.New(s.fails)
	}
	if argv[0] == "iptables-restore" {
		s.restored = input
		return nil
	}
	rule, verb := slices.Clone(argv), argv[4]
	rule = slices.Delete(rule, 4, 5)
	there := slices.Contains(s.jumps, strings.Join(rule, " "))
	if verb == "--check" && !there {
		return errors.New("iptables: Bad rule (does a matching rule exist in that chain?).")
	}
	if verb == "--insert" {
		s.jumps = append(s.jumps, strings.Join(rule, " "))
	}
	return nil
}

func TestPublishingTwiceLeavesOneJumpInEachChain(t *testing.T) {
	stand := &tables{}
	wall := firewall.Firewall{Run: stand.run}
	for _, address := range []string{"172.17.0.2", "172.17.0.3"} {
		if err := wall.Publish(t.Context(), ports, address); err != nil {
			t.Fatal(err)
		}
	}
	want := []string{
		"iptables --wait --table filter DOCKER-USER -j CONTAINER-HOST",
		"iptables --wait --table nat PREROUTING -m addrtype --dst-type LOCAL -j CONTAINER-HOST",
		"iptables --wait --table nat OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j CONTAINER-HOST",
	}
	if !slices.Equal(stand.jumps, want) {
		t.Errorf("jumps: %q", stand.jumps)
	}
	if !strings.Contains(stand.restored, "172.17.0.3:8080") || strings.Contains(stand.restored, "172.17.0.2") {
		t.Errorf("the ports lead elsewhere:\n%s", stand.restored)
	}
}

func TestAFailureIsPassedOn(t *testing.T) {
	for _, step := range []string{"iptables-restore", "--insert DOCKER-USER"} {
		stand := &tables{fails: step}
		if err := (firewall.Firewall{Run: stand.run}).Publish(t.Context(), ports, ""); err == nil {
			t.Errorf("%s failed, and nobody says so", step)
		}
	}
}
