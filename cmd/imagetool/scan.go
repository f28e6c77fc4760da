package main

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"syscall"
)

// What a rule may look at around its needle. A header and its body, or a key id and its secret, lie
// well within this.
const (
	lookBehind = 1 << 10
	lookAhead  = 8 << 10
	// Large reads: of the time to read a device in a virtual machine, most is spent per request.
	chunkSize = 4 << 20
	// What is carried from one chunk to the next lies before it, so that chunks are always read to the
	// same address, a multiple of the page size as O_DIRECT wants it.
	carrySize = 12 << 10
)

// stride is the length that every pattern has at least. A pattern that long covers exactly one of the
// bytes at stride-1, 2*stride-1, ..., so looking at those alone misses nothing: one byte in sixteen,
// which matters on a machine in software emulation that has gigabytes to read.
const stride = 16

// hit is a match: of which rule, and for key material a fingerprint of it.
type hit struct {
	rule, detail, fingerprint string
	offset                    int64
}

// contentRule finds secrets in bytes, whether in a file or on the bare device. Its pattern gives for
// each of its first stride bytes the values that may stand there; judge then decides, with what is
// around in the window.
type contentRule struct {
	name    string
	pattern [stride]string
	// worth, where there is one, rules a sampled byte out before all places in the pattern that it could
	// have are tried.
	worth func(window []byte, sample int) bool
	judge func(window []byte, at int) (detail, fingerprint string, found bool)
}

// exactly is the pattern of a fixed text.
func exactly(text string) (pattern [stride]string) {
	for i := range pattern {
		pattern[i] = text[i : i+1]
	}
	return pattern
}

// candidate is a rule, and how far into its pattern a sampled byte may be.
type candidate struct {
	rule  *contentRule
	backs []int
}

// matcher is the rules, indexed by the value of a sampled byte. It does not change: scanners of several
// goroutines share it.
type matcher [256][]candidate

func newMatcher(forbidden []string) *matcher {
	rules := []contentRule{
		{name: "private-key", pattern: exactly(keyHeaderEnd), judge: judgePrivateKey},
		{name: "aws-credentials", pattern: accessKeyPattern(), worth: base32Follows, judge: judgeAccessKey},
		{name: "token", pattern: tokenPattern(), worth: alphanumericsFollow, judge: judgeToken},
	}
	for i, text := range forbidden {
		detail := fmt.Sprintf("forbidden text number %d", i+1)
		judge := func(window []byte, at int) (string, string, bool) {
			return detail, "", bytes.HasPrefix(window[at:], []byte(text))
		}
		rules = append(rules, contentRule{name: "forbidden", pattern: exactly(text), judge: judge})
	}
	m := &matcher{}
	for i := range rules {
		for value := range m {
			var backs []int
			for back, values := range rules[i].pattern {
				if strings.IndexByte(values, byte(value)) >= 0 {
					backs = append(backs, back)
				}
			}
			if backs != nil {
				m[value] = append(m[value], candidate{&rules[i], backs})
			}
		}
	}
	return m
}

// fits tells whether the pattern stands at that place in the window.
func (r *contentRule) fits(window []byte, at int) bool {
	if at < 0 || at+stride > len(window) {
		return false
	}
	for i, values := range r.pattern {
		if values[0] != window[at+i] && strings.IndexByte(values[1:], window[at+i]) < 0 {
			return false
		}
	}
	return true
}

// scanner reads streams; it owns the buffer, so each goroutine needs one of its own.
type scanner struct {
	matcher *matcher
	buffer  []byte
}

// newScanner maps its buffer, for the alignment; it is small change to let it go with the process.
func newScanner(m *matcher) (*scanner, error) {
	buffer, err := syscall.Mmap(-1, 0, carrySize+chunkSize, syscall.PROT_READ|syscall.PROT_WRITE,
		syscall.MAP_PRIVATE|syscall.MAP_ANON)
	if err != nil {
		return nil, fmt.Errorf("buffer: %w", err)
	}
	return &scanner{m, buffer}, nil
}

// scan reads to the end and reports each match once, at the offset where its pattern begins. It
// returns the number of bytes read.
func (s *scanner) scan(in io.Reader, report func(hit)) (int64, error) {
	var total int64
	carry := 0 // bytes kept from the chunk before
	from := 0  // where in the window the search goes on
	for {
		n, err := io.ReadFull(in, s.buffer[carrySize:])
		last := err == io.EOF || err == io.ErrUnexpectedEOF
		if err != nil && !last {
			return total, err
		}
		window := s.buffer[carrySize-carry : carrySize+n]
		base := total - int64(carry)
		total += int64(n)
		to := len(window)
		if !last {
			to -= lookAhead
		}
		s.matcher.search(window, from, to, func(h hit) {
			h.offset += base
			report(h)
		})
		if last {
			return total, nil
		}
		carry = lookBehind + lookAhead
		from = lookBehind
		copy(s.buffer[carrySize-carry:carrySize], window[len(window)-carry:])
	}
}

// search reports patterns that begin in [from, to); what they are judged by may lie outside.
func (m *matcher) search(window []byte, from, to int, report func(hit)) {
	for sample := from + stride - 1; sample < min(len(window), to+stride-1); sample += stride {
		for _, c := range m[window[sample]] {
			if c.rule.worth != nil && !c.rule.worth(window, sample) {
				continue
			}
			for _, back := range c.backs {
				at := sample - back
				if at >= to || !c.rule.fits(window, at) {
					continue
				}
				if detail, fingerprint, found := c.rule.judge(window, at); found {
					report(hit{c.rule.name, detail, fingerprint, int64(at)})
				}
			}
		}
	}
}
