package main

import (
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	dnsPort   = 53
	dnsHeader = 12
	dnsTTL    = 60 // seconds, of private names, as EC2's resolver says

	typeA   = 1
	typePTR = 12
	classIN = 1

	codeOK       = 0
	codeServFail = 2
	codeNXDomain = 3
	codeNotImp   = 4

	upstreamTimeout = 2 * time.Second
	// After a resolver has not answered, it is not asked again for this long: a guest that looks up a dozen
	// names while it boots must not wait for each of them.
	upstreamPause = 30 * time.Second
)

// question is the one question of a query; rest begins behind it.
type question struct {
	name        string // lower case, without the last dot
	kind, class uint16
	end         int
}

func parseQuestion(query []byte) (question, bool) {
	if len(query) < dnsHeader || query[2]&0x80 != 0 || binary.BigEndian.Uint16(query[4:]) != 1 {
		return question{}, false
	}
	var labels []string
	at := dnsHeader
	for {
		if at >= len(query) {
			return question{}, false
		}
		length := int(query[at])
		at++
		if length == 0 {
			break
		}
		if length > 63 || at+length > len(query) {
			return question{}, false
		}
		labels = append(labels, string(query[at:at+length]))
		at += length
	}
	if at+4 > len(query) {
		return question{}, false
	}
	return question{
		name: strings.ToLower(strings.Join(labels, ".")), kind: binary.BigEndian.Uint16(query[at:]),
		class: binary.BigEndian.Uint16(query[at+2:]), end: at + 4,
	}, true
}

// reply makes an answer with at most one record, which is about the question's own name.
func (q question) reply(query []byte, code byte, data []byte) []byte {
	out := append([]byte{}, query[:q.end]...)
	out[2] = 0x80 | query[2]&0x79 // a response to the same operation, recursion as asked
	out[3] = 0x80 | code          // recursion available
	clear(out[6:dnsHeader])
	if data != nil {
		out[7] = 1
		out = append(out, 0xc0, dnsHeader) // the name, by a pointer to the question
		out = binary.BigEndian.AppendUint16(out, q.kind)
		out = binary.BigEndian.AppendUint16(out, q.class)
		out = binary.BigEndian.AppendUint32(out, dnsTTL)
		out = binary.BigEndian.AppendUint16(out, uint16(len(data)))
		out = append(out, data...)
	}
	return out
}

// resolve answers a query: the VPC's own names from what they say themselves, others by the host's resolvers
// where guests may reach the world, and at once with "no such name" where they may not.
func (n *network) resolve(query []byte, transport string, r *rests) []byte {
	q, ok := parseQuestion(query)
	if !ok {
		return nil
	}
	if query[2]&0x78 != 0 {
		return q.reply(query, codeNotImp, nil)
	}
	if host, ours := strings.CutSuffix(q.name, "."+n.domain); ours || q.name == n.domain {
		return n.resolvePrivate(q, query, host)
	}
	if address, isReverse := reverseAddress(q.name); isReverse && n.vpc.Contains(address) {
		if q.kind != typePTR || q.class != classIN {
			return q.reply(query, codeOK, nil)
		}
		return q.reply(query, codeOK, encodeName(privateName(address)+"."+n.domain))
	}
	if !n.allowEgress {
		return q.reply(query, codeNXDomain, nil)
	}
	if answer := n.upstream.ask(query, transport, r); answer != nil {
		return answer
	}
	return q.reply(query, codeServFail, nil)
}

// resolvePrivate knows every address of the VPC by its name, as EC2's resolver does.
func (n *network) resolvePrivate(q question, query []byte, host string) []byte {
	digits, ok := strings.CutPrefix(host, "ip-")
	address, err := netip.ParseAddr(strings.ReplaceAll(digits, "-", "."))
	switch {
	case !ok || err != nil || !n.vpc.Contains(address):
		return q.reply(query, codeNXDomain, nil)
	case q.kind != typeA || q.class != classIN:
		return q.reply(query, codeOK, nil)
	}
	return q.reply(query, codeOK, address.AsSlice())
}

func privateName(address netip.Addr) string {
	return "ip-" + strings.ReplaceAll(address.String(), ".", "-")
}

func encodeName(name string) []byte {
	var out []byte
	for _, label := range strings.Split(name, ".") {
		out = append(append(out, byte(len(label))), label...)
	}
	return append(out, 0)
}

func reverseAddress(name string) (netip.Addr, bool) {
	digits, ok := strings.CutSuffix(name, ".in-addr.arpa")
	parts := strings.Split(digits, ".")
	if !ok || len(parts) != 4 {
		return netip.Addr{}, false
	}
	var octets [4]byte
	for i, part := range parts {
		value, err := strconv.ParseUint(part, 10, 8)
		if err != nil {
			return netip.Addr{}, false
		}
		octets[3-i] = byte(value)
	}
	return netip.AddrFrom4(octets), true
}

// upstream is the host's resolvers, in resolv.conf's order.
type upstream struct {
	servers []string
}

func newUpstream(resolvConf string) *upstream {
	u := &upstream{}
	content, _ := os.ReadFile(resolvConf) // without it there are no resolvers, and names fail at once
	for line := range strings.Lines(string(content)) {
		if fields := strings.Fields(line); len(fields) > 1 && fields[0] == "nameserver" {
			u.servers = append(u.servers, net.JoinHostPort(fields[1], strconv.Itoa(dnsPort)))
		}
	}
	return u
}

// rests are the resolvers that have not answered one guest. They are its own: whoever asks for names that nobody
// answers for takes the resolver away from nobody else.
type rests struct {
	mu    sync.Mutex
	since map[string]time.Time // by server
}

func (r *rests) rests(server string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return time.Since(r.since[server]) < upstreamPause
}

func (r *rests) note(server string, answered bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if answered {
		delete(r.since, server)
	} else {
		r.since[server] = time.Now()
	}
}

// ask returns the first answer of a server, nil when none has one.
func (u *upstream) ask(query []byte, transport string, r *rests) []byte {
	for _, server := range u.servers {
		if r.rests(server) {
			continue
		}
		answer, err := exchange(server, query, transport)
		r.note(server, err == nil)
		if err == nil {
			return answer
		}
	}
	return nil
}

func exchange(server string, query []byte, transport string) ([]byte, error) {
	conn, err := net.DialTimeout(transport, server, upstreamTimeout)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(upstreamTimeout))
	if transport == "tcp" {
		if err := writeMessage(conn, query); err != nil {
			return nil, err
		}
		return readMessage(conn)
	}
	if _, err := conn.Write(query); err != nil {
		return nil, err
	}
	answer := make([]byte, maxFrame)
	for {
		length, err := conn.Read(answer)
		if err != nil {
			return nil, err
		}
		if length >= dnsHeader && answer[0] == query[0] && answer[1] == query[1] {
			return answer[:length], nil
		}
	}
}

// Over TCP each message has its length in front (RFC 1035, 4.2.2).

func readMessage(r io.Reader) ([]byte, error) {
	var head [2]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	message := make([]byte, binary.BigEndian.Uint16(head[:]))
	_, err := io.ReadFull(r, message)
	return message, err
}

func writeMessage(w io.Writer, message []byte) error {
	_, err := w.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(message))), message...))
	return err
}

// serveDNS answers the queries of one TCP connection.
func (n *network) serveDNS(p *port, conn net.Conn) {
	defer conn.Close()
	for {
		conn.SetDeadline(time.Now().Add(10 * time.Second))
		query, err := readMessage(conn)
		if err != nil {
			return
		}
		if !p.queries.tryAcquire() {
			return
		}
		reply := n.resolve(query, "tcp", &p.resolvers)
		p.queries.release()
		if reply == nil || writeMessage(conn, reply) != nil {
			return
		}
	}
}
