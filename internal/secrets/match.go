package secrets

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
)

// stride is the length that every pattern and every run has at least. Something that long covers exactly one of the
// bytes at stride-1, 2*stride-1, ..., so looking at those alone misses nothing: one byte in fifteen, which matters on a
// machine in software emulation that has gigabytes to read. It is odd: of UTF-16 every other sample is a character.
const stride = 15

// MinForbidden is the length that a forbidden text has at least.
const MinForbidden = 16

// maxDepth bounds encodings within encodings, such as base64 in UTF-16.
const maxDepth = 2

// anchor finds secrets by a fixed text. The pattern gives for each of its bytes the values that may stand there; judge
// then decides, with what is around in the window. The first byte has one value.
type anchor struct {
	rule    string
	pattern [stride]string
	judge   func(window []byte, at int) (detail, fingerprint string, found bool)
}

// exactly is the pattern of a fixed text.
func exactly(text string) (pattern [stride]string) {
	for i := range pattern {
		pattern[i] = text[i : i+1]
	}
	return pattern
}

// candidate is an anchor, how far into its pattern a sampled byte may be, and what the pattern begins with.
type candidate struct {
	anchor *anchor
	back   int
	first  byte
}

// Matcher is the rules, indexed by what a sampled byte or the start of a word may be. It does not change: scanners of
// several goroutines share it.
type Matcher struct {
	anchors [256][]candidate
	pairs   [1 << 10]uint64 // a bit for each sampled byte and the one behind it that an anchor may have
	starts  [1 << 14]uint8  // by the first two characters of a word, an index into tokens; 0 is none
	tokens  [][]*token
}

// NewMatcher makes a matcher of all rules, and of texts that must not be there; each has MinForbidden bytes or more.
func NewMatcher(forbidden []string) *Matcher {
	anchors := textAnchors()
	for i, text := range forbidden {
		detail := fmt.Sprintf("forbidden text number %d", i+1)
		judge := func(window []byte, at int) (string, string, bool) {
			return detail, "", bytes.HasPrefix(window[at:], []byte(text))
		}
		anchors = append(anchors, anchor{"forbidden", exactly(text), judge})
	}
	m := &Matcher{tokens: make([][]*token, 1)}
	for i := range anchors {
		for back, values := range anchors[i].pattern {
			for _, value := range []byte(values) {
				m.anchors[value] = append(m.anchors[value], candidate{&anchors[i], back, anchors[i].pattern[0][0]})
				m.addPairs(value, back, &anchors[i])
			}
		}
	}
	for i := range tokens {
		key := startKey(tokens[i].prefix[0], tokens[i].prefix[1])
		if m.starts[key] == 0 {
			m.starts[key] = uint8(len(m.tokens))
			m.tokens = append(m.tokens, nil)
		}
		m.tokens[m.starts[key]] = append(m.tokens[m.starts[key]], &tokens[i])
	}
	return m
}

// addPairs notes what may follow a byte of an anchor; behind its last one there may be anything.
func (m *Matcher) addPairs(value byte, back int, a *anchor) {
	for next := range 256 {
		if back == stride-1 || strings.IndexByte(a.pattern[back+1], byte(next)) >= 0 {
			pair := int(value)<<8 | next
			m.pairs[pair/64] |= 1 << (pair % 64)
		}
	}
}

func startKey(first, second byte) int { return int(first&0x7f)<<7 | int(second&0x7f) }

// fits tells whether the pattern stands at that place in the window.
func (a *anchor) fits(window []byte, at int) bool {
	if at < 0 || at+stride > len(window) {
		return false
	}
	for i, values := range a.pattern {
		if values[0] != window[at+i] && (len(values) == 1 || strings.IndexByte(values[1:], window[at+i]) < 0) {
			return false
		}
	}
	return true
}

// Classes of bytes.
const (
	wordByte   = 1 << iota // letters, digits and the underscore
	runByte                // what tokens, URLs and assignments without blanks consist of
	base64Byte             // of both alphabets, without the padding
	textByte               // printable, and white space
	hexByte
	joinByte // the underscore, behind which a word begins
	giveByte // what may stand right before a value
)

var classes = func() (table [256]byte) {
	for c := range table {
		letter := c|0x20 >= 'a' && c|0x20 <= 'z'
		digit := c >= '0' && c <= '9'
		if letter || digit || c == '_' {
			table[c] |= wordByte
		}
		if letter || digit || strings.IndexByte("_-+/=.~%:@\\!$&*#?^|", byte(c)) >= 0 && c != 0 {
			table[c] |= runByte
		}
		if letter || digit || c == '+' || c == '/' || c == '-' || c == '_' {
			table[c] |= base64Byte
		}
		if c >= ' ' && c <= '~' || c == '\t' || c == '\n' || c == '\r' {
			table[c] |= textByte
		}
		if digit || c|0x20 >= 'a' && c|0x20 <= 'f' {
			table[c] |= hexByte
		}
		if c == '_' {
			table[c] |= joinByte
		}
		if strings.IndexByte(" =:>,\t\"'`\\|", byte(c)) >= 0 {
			table[c] |= giveByte
		}
	}
	return table
}()

func is(c, class byte) bool { return classes[c]&class != 0 }

// search reports what begins in [from, to); what it is judged by may lie outside.
func (m *Matcher) search(window []byte, from, to, depth int, report func(Hit)) {
	end := min(len(window), to+stride-1)
	run, wide := from, from // the ends of what was looked at, as a run and as UTF-16
	zeros := from           // up to where is not known to be nothing
	for sample := from + stride - 1; sample < end; sample += stride {
		c := window[sample]
		next := byte(0)
		if sample+1 < len(window) {
			next = window[sample+1]
		}
		if c == 0 {
			if sample >= zeros {
				// Most of a disk is empty. What begins in zeros is sampled behind them.
				if next := sample + len(empty); next <= len(window) && string(window[sample:next]) == empty {
					sample += (len(empty)/stride - 1) * stride
					continue
				}
				zeros = sample + len(empty)
			}
			if window[sample-1] == 0 || next == 0 {
				continue // no anchor has two zeros in a row
			}
		}
		if m.pairs[int(c)<<2|int(next)>>6]&(1<<(next&63)) != 0 {
			m.searchAnchors(window, sample, to, report)
		}
		if classes[c]&textByte == 0 {
			continue
		}
		if window[sample-1] == 0 && sample >= wide && depth < maxDepth && isWide(window, sample) {
			wide = m.searchWide(window, sample, max(from, wide), to, depth, report)
		}
		if sample >= run && mayBeRun(window, sample) {
			run = m.searchRun(window, sample, max(from, run), to, depth, report)
		}
	}
}

// searchAnchors compares the anchors that have the sampled byte.
func (m *Matcher) searchAnchors(window []byte, sample, to int, report func(Hit)) {
	for _, candidate := range m.anchors[window[sample]] {
		at := sample - candidate.back
		if window[at] != candidate.first || at >= to || !candidate.anchor.fits(window, at) {
			continue
		}
		if detail, fingerprint, found := candidate.anchor.judge(window, at); found {
			report(Hit{candidate.anchor.rule, detail, fingerprint, int64(at)})
		}
	}
}

// empty is compared at once.
var empty = string(make([]byte, 4096))

// mayBeRun looks where a run of stride characters around the sample has some: seven before it, or seven behind. It
// takes one branch, because nobody can predict what a disk holds.
func mayBeRun(window []byte, sample int) bool {
	const half = stride / 2
	if sample < half || sample+half >= len(window) {
		return is(window[sample], runByte)
	}
	around := window[sample-half : sample+half+1]
	before := classes[around[0]] & classes[around[2]] & classes[around[4]] & classes[around[6]]
	behind := classes[around[8]] & classes[around[10]] & classes[around[12]] & classes[around[14]]
	return classes[around[half]]&(before|behind)&runByte != 0
}

// maxRun bounds what is looked at as one run; the rest of a longer one is the next.
const maxRun = 2048

// searchRun looks at the run of characters around a sample, and returns its end. Words of it that begin in [from, to)
// are compared with the tokens' prefixes.
func (m *Matcher) searchRun(window []byte, sample, from, to, depth int, report func(Hit)) int {
	start, end := sample, sample+1
	for least := max(0, sample-maxRun); start > least && classes[window[start-1]]&runByte != 0; {
		start--
	}
	for most := min(len(window), sample+maxRun); end < most && classes[window[end]]&runByte != 0; {
		end++
	}
	if end-start < stride {
		return end
	}
	last := end // what is left behind it is too short for a token, a URL with a password or a value
	if end-sample < maxRun {
		last = end - minURL
		m.judgeMailchimp(window, end, from, to, report)
	}
	m.searchWords(window, max(start, from), min(last, to), report)
	if start >= from && start < to {
		m.judgeValue(window, start, report)
		judgeCurl(window, start, end, report)
	}
	if depth < maxDepth && end-start >= minBase64 {
		m.searchBase64(window, max(start, from), min(end, to), depth, report)
	}
	return end
}

// searchWords looks at a part of a run: at its marks, and at the starts of its words.
func (m *Matcher) searchWords(window []byte, from, to int, report func(Hit)) {
	escape := -8
	before := byte(0) // the class of the character before
	if from > 0 && from <= len(window) {
		before = classes[window[from-1]]
	}
	for at := from; at < to; at++ {
		c := window[at]
		class := classes[c]
		within := class&before&wordByte != 0 && before&joinByte == 0
		before = class
		switch {
		case within && at-escape > 6:
		case class&wordByte != 0:
			if (!within || escaped(window, at)) && m.mayStart(window, at) {
				m.judgeWord(window, at, report)
			}
		case c == '\\' || c == '%':
			escape = at
		case c == ':':
			m.judgeColon(window, at, report)
			m.judgeValue(window, at+1, report)
		case c == '=':
			m.judgeValue(window, at+1, report)
		case c == '~':
			judgeTilde(window, at, report)
		}
	}
}

// mayStart tells by some bytes whether judgeWord may find something that begins there.
func (m *Matcher) mayStart(window []byte, at int) bool {
	c := window[at]
	return at+1 < len(window) && m.starts[startKey(c, window[at+1])] != 0 ||
		at+6 < len(window) && (window[at+6] == '_' || c >= 'M' && c <= 'O')
}

// escaped tells whether the characters before a word are an escape and not its start: \n, %3D or \u003d.
func escaped(window []byte, at int) bool {
	if at >= 2 && window[at-2] == '\\' && strings.IndexByte("nrt", window[at-1]) >= 0 {
		return true
	}
	if at >= 3 && window[at-3] == '%' && is(window[at-2], hexByte) && is(window[at-1], hexByte) {
		return true
	}
	return at >= 6 && window[at-6] == '\\' && window[at-5] == 'u' && window[at-4] == '0' && window[at-3] == '0'
}

// judgeWord compares the start of a word with the tokens.
func (m *Matcher) judgeWord(window []byte, at int, report func(Hit)) {
	if t, text := m.tokenAt(window, at); t != nil {
		report(Hit{t.rule(), t.kind, fingerprint(text), int64(at)})
		return
	}
	judgeShape(window, at, report)
}

// tokenAt returns the token that begins there, and its text.
func (m *Matcher) tokenAt(window []byte, at int) (*token, []byte) {
	if at+2 > len(window) || window[at+1] >= 0x80 {
		return nil, nil
	}
	for _, t := range m.tokens[m.starts[startKey(window[at], window[at+1])]] {
		if !bytes.HasPrefix(window[at:], []byte(t.prefix)) {
			continue
		}
		if text, found := t.judge(window, at); found {
			return t, text
		}
	}
	return nil, nil
}

// fingerprint tells secrets apart without holding them.
func fingerprint(secret []byte) string {
	sum := sha256.Sum256(secret)
	return hex.EncodeToString(sum[:8])
}
