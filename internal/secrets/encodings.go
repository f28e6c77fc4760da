package secrets

import (
	"bytes"
	"encoding/base64"
)

// isWide tells whether a sampled byte is a character of UTF-16 text, of either byte order: its neighbours are zeros, and
// the characters beside it are text.
func isWide(window []byte, sample int) bool {
	if sample+3 >= len(window) || sample < 1 || window[sample-1] != 0 || window[sample+1] != 0 {
		return false
	}
	return is(window[sample+2], textByte) && window[sample+3] == 0 ||
		sample >= 3 && is(window[sample-2], textByte) && window[sample-3] == 0
}

// searchWide searches the UTF-16 text around a sample as if it were ASCII, and returns its end.
func (m *Matcher) searchWide(window []byte, sample, from, to, depth int, report func(Hit)) int {
	start, end := sample, sample+2
	for start >= 2 && sample-start < LookBehind && is(window[start-2], textByte) && window[start-1] == 0 {
		start -= 2
	}
	for end < len(window) && end-sample < 4*LookAhead && is(window[end], textByte) && window[end-1] == 0 {
		end += 2
	}
	if (end-start)/2 < stride {
		return end
	}
	text := make([]byte, 0, (end-start)/2)
	for at := start; at < end && at < len(window); at += 2 {
		text = append(text, window[at])
	}
	first, limit := max(0, (from-start+1)/2), min(len(text), (to-start+1)/2)
	m.search(text, first, limit, depth+1, func(h Hit) {
		h.Offset = int64(start) + 2*h.Offset
		report(h)
	})
	return end
}

const (
	minBase64 = 24
	// As much as is decoded: a key and what may be before it.
	maxBase64 = LookAhead
	// A text's first characters decide whether a run is base64 of text; twelve random bytes are text once in 10^5.
	probeBase64 = 16
)

// What a PEM header becomes in base64, by its place among three bytes, and how far before that its bytes begin; nothing
// else of a stock disk begins so.
var encodedHeaders = []struct {
	text   string
	before int
}{{"LS0tLS1CRUdJTi", 0}, {"LS0tQkVHSU4g", 4}, {"LS0tLUJFR0lO", 4}}

// encodedDashes is what all of them begin with.
const encodedDashes = "LS0t"

// searchBase64 decodes runs of base64 that are text, such as a Kubernetes secret's, and searches them.
func (m *Matcher) searchBase64(window []byte, from, to, depth int, report func(Hit)) {
	for at := from; at < to; {
		// What is long enough has the last byte that a shorter one could not have.
		start := at + minBase64 - 1
		if start >= len(window) {
			return
		}
		if !is(window[start], base64Byte) {
			at = start + 1
			continue
		}
		for start > at && is(window[start-1], base64Byte) {
			start--
		}
		at = m.searchDigits(window, start, to, depth, report)
	}
}

// searchDigits decodes the base64 that begins there, and returns its end.
func (m *Matcher) searchDigits(window []byte, at, to, depth int, report func(Hit)) int {
	end := at
	for end < len(window) && end-at < maxRun && is(window[end], base64Byte) {
		end++
	}
	within := at > 0 && is(window[at-1], base64Byte) && (at < 2 || window[at-2] != '\\')
	if at >= to || within || end-at < minBase64 {
		return end
	}
	m.searchDecoded(window, at, depth, report)
	if end-at >= 3*minBase64 {
		m.searchHeaders(window, at+1, end, depth, report)
	}
	return end
}

// searchHeaders decodes base64 from the place where it has the first PEM header of each kind.
func (m *Matcher) searchHeaders(window []byte, at, end, depth int, report func(Hit)) {
	// Most have none: one search for what all begin with tells.
	first := bytes.Index(window[at:end], []byte(encodedDashes))
	if first < 0 {
		return
	}
	at += first
	for _, header := range encodedHeaders {
		if i := bytes.Index(window[at:end], []byte(header.text)); i >= 0 {
			m.searchDecoded(window, at+i-header.before, depth, report)
		}
	}
}

// searchDecoded searches what base64 at that place decodes to, when it begins as text.
func (m *Matcher) searchDecoded(window []byte, at, depth int, report func(Hit)) {
	var probe [probeBase64]byte
	if at < 0 || at+probeBase64 > len(window) {
		return
	}
	n, err := decodeBase64(probe[:], window[at:at+probeBase64])
	if err != nil {
		return
	}
	for i, c := range probe[:n] {
		if i > 2 && !is(c, textByte) { // a header may come behind the end of another text
			return
		}
	}
	digits := base64Digits(window[at:min(len(window), at+maxBase64)])
	digits = bytes.TrimRight(digits, "=")
	digits = digits[:len(digits)/4*4+len(digits)%4*boolToInt(len(digits)%4 != 1)]
	text := make([]byte, base64.RawStdEncoding.DecodedLen(len(digits)))
	n, _ = decodeBase64(text, digits)
	m.search(text[:n], 0, n, depth+1, func(h Hit) {
		h.Offset = int64(at)
		h.Detail += " in base64"
		report(h)
	})
}

// decodeBase64 takes both alphabets.
func decodeBase64(to, digits []byte) (int, error) {
	if bytes.ContainsAny(digits, "-_") {
		return base64.RawURLEncoding.Decode(to, digits)
	}
	return base64.RawStdEncoding.Decode(to, digits)
}

func boolToInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

// written are escapes that stand for a character of base64, or for a line end (a blank here).
var written = []struct {
	escape string
	value  byte
}{
	{`\/`, '/'}, {`\u002f`, '/'}, {`\u002F`, '/'}, {`\u002b`, '+'}, {`\u002B`, '+'}, {`\u003d`, '='}, {`\u003D`, '='},
	{`\u000a`, ' '}, {`\u000A`, ' '}, {`\u000d`, ' '}, {`\u000D`, ' '}, {`\x0a`, ' '}, {`\x0d`, ' '}, {`\012`, ' '}, {`\015`, ' '},
	{`\n`, ' '}, {`\r`, ' '}, {`\t`, ' '}, {"\\\n", ' '},
	{"%2F", '/'}, {"%2f", '/'}, {"%2B", '+'}, {"%2b", '+'}, {"%3D", '='}, {"%3d", '='},
	{"%0A", ' '}, {"%0a", ' '}, {"%0D", ' '}, {"%0d", ' '}, {"%20", ' '},
	{"&#10;", ' '}, {"&#13;", ' '}, {"&#xA;", ' '}, {"&#xa;", ' '}, {"&#xD;", ' '}, {"&#xd;", ' '}, {"&#43;", '+'}, {"&#47;", '/'},
	{"&#61;", '='},
}

// unescape returns the character that an escape at the start of the text stands for, and the escape's length; 0 where
// there is none. A backslash may be escaped itself, any number of times.
func unescape(text []byte) (value byte, length int) {
	if len(text) == 0 || text[0] != '\\' && text[0] != '%' && text[0] != '&' {
		return 0, 0
	}
	backslashes := 0
	for backslashes+1 < len(text) && backslashes < 8 && text[backslashes] == '\\' && text[backslashes+1] == '\\' {
		backslashes++
	}
	for _, w := range written {
		if bytes.HasPrefix(text[backslashes:], []byte(w.escape)) {
			return w.value, backslashes + len(w.escape)
		}
	}
	return 0, 0
}

// plain undoes escapes.
func plain(text []byte) []byte {
	if bytes.IndexByte(text, '\\') < 0 && bytes.IndexByte(text, '%') < 0 && bytes.IndexByte(text, '&') < 0 {
		return text
	}
	out := make([]byte, 0, len(text))
	for len(text) > 0 {
		value, length := unescape(text)
		if length == 0 {
			value, length = text[0], 1
		}
		out = append(out, value)
		text = text[length:]
	}
	return out
}

// base64Digits returns the base64 characters across white space, written line ends, comment marks at the start of lines
// and the joints of string literals, up to the first other character.
func base64Digits(text []byte) (digits []byte) {
	lineStart := false
	for i := 0; i < len(text); {
		c := text[i]
		if isBase64(c) || c == '-' && i+1 < len(text) && text[i+1] != '-' || c == '_' {
			digits = append(digits, c)
			i++
			lineStart = false
			continue
		}
		if value, length := unescape(text[i:]); length > 0 {
			if value != ' ' {
				digits = append(digits, value)
			}
			lineStart = value == ' '
			i += length
			continue
		}
		switch {
		case c == '\n' || c == '\r':
			lineStart = true
			i++
		case c == ' ' || c == '\t' || lineStart && isCommentMark(c):
			i++
		case c == '"' || c == '\'':
			length := joint(text[i:])
			if length == 0 {
				return digits
			}
			i += length
		default:
			return digits
		}
	}
	return digits
}

// isCommentMark: what stands before a line in a comment, or in the answer to a mail.
func isCommentMark(c byte) bool { return bytes.IndexByte([]byte("#>*;|"), c) >= 0 }

// joint is the length of what stands between two literals of one string: "a" + "b", 'a'\n'b'.
func joint(text []byte) int {
	for i := 1; i < min(len(text), 80); i++ {
		if text[i] == text[0] {
			return i + 1
		}
		if bytes.IndexByte([]byte(" \t\r\n+.\\,"), text[i]) < 0 {
			return 0
		}
	}
	return 0
}

func isBase64(c byte) bool {
	return c|0x20 >= 'a' && c|0x20 <= 'z' || c >= '0' && c <= '9' || c == '+' || c == '/' || c == '='
}
