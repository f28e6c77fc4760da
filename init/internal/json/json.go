// Package json reads and writes the few small JSON documents that process 1 meets (RFC 8259). It stands in for
// encoding/json, which with the reflection that it needs makes the binary larger by 350 KB with Go 1.26 and by
// 870 KB with Go 1.27.
package json

import (
	"errors"
	"fmt"
	"strconv"
	"unicode/utf16"
	"unicode/utf8"
)

// depthLimit bounds the recursion on what comes from outside.
const depthLimit = 100

// Parse reads one document into nil, bool, float64, string, []any and map[string]any, as encoding/json does. It is
// stricter where leniency hides slips: a name twice in one object and text that is not UTF-8 are errors.
func Parse(document []byte) (any, error) {
	p := parser{data: document}
	value, err := p.value(0)
	if err == nil {
		p.space()
		if p.at < len(p.data) {
			err = errors.New("more text after the end")
		}
	}
	if err != nil {
		return nil, fmt.Errorf("JSON, byte %d: %w", p.at, err)
	}
	return value, nil
}

// A parser has read data up to at, which is where an error is.
type parser struct {
	data []byte
	at   int
}

// peek returns the next byte, or 0 at the end.
func (p *parser) peek() byte {
	if p.at < len(p.data) {
		return p.data[p.at]
	}
	return 0
}

func (p *parser) space() {
	for c := p.peek(); c == ' ' || c == '\t' || c == '\n' || c == '\r'; c = p.peek() {
		p.at++
	}
}

// take goes past the character when it is the next one.
func (p *parser) take(c byte) bool {
	if p.peek() != c {
		return false
	}
	p.at++
	return true
}

func (p *parser) unexpected() error {
	if p.at >= len(p.data) {
		return errors.New("it ends too early")
	}
	return fmt.Errorf("unexpected %q", p.data[p.at])
}

func (p *parser) value(depth int) (any, error) {
	if depth > depthLimit {
		return nil, errors.New("nested too deep")
	}
	p.space()
	switch c := p.peek(); {
	case c == '{':
		return p.object(depth)
	case c == '[':
		return p.array(depth)
	case c == '"':
		return p.text()
	case c == '-' || c >= '0' && c <= '9':
		return p.number()
	case p.word("null"):
		return nil, nil
	case p.word("true"):
		return true, nil
	case p.word("false"):
		return false, nil
	}
	return nil, p.unexpected()
}

func (p *parser) word(spelling string) bool {
	end := p.at + len(spelling)
	if end > len(p.data) || string(p.data[p.at:end]) != spelling {
		return false
	}
	p.at = end
	return true
}

func (p *parser) object(depth int) (map[string]any, error) {
	members := map[string]any{}
	p.at++
	for p.space(); !p.take('}'); p.space() {
		if len(members) > 0 {
			if !p.take(',') {
				return nil, p.unexpected()
			}
			p.space()
		}
		if p.peek() != '"' {
			return nil, p.unexpected()
		}
		name, err := p.text()
		if err != nil {
			return nil, err
		}
		if _, twice := members[name]; twice {
			return nil, fmt.Errorf("%.40q is there twice", name)
		}
		if p.space(); !p.take(':') {
			return nil, p.unexpected()
		}
		if members[name], err = p.value(depth + 1); err != nil {
			return nil, err
		}
	}
	return members, nil
}

func (p *parser) array(depth int) ([]any, error) {
	elements := []any{}
	p.at++
	for p.space(); !p.take(']'); p.space() {
		if len(elements) > 0 && !p.take(',') {
			return nil, p.unexpected()
		}
		element, err := p.value(depth + 1)
		if err != nil {
			return nil, err
		}
		elements = append(elements, element)
	}
	return elements, nil
}

func (p *parser) number() (float64, error) {
	begin := p.at
	p.take('-')
	if !p.take('0') && !p.digits() {
		return 0, p.unexpected()
	}
	if p.take('.') && !p.digits() {
		return 0, p.unexpected()
	}
	if p.take('e') || p.take('E') {
		if !p.take('+') {
			p.take('-')
		}
		if !p.digits() {
			return 0, p.unexpected()
		}
	}
	return strconv.ParseFloat(string(p.data[begin:p.at]), 64)
}

// digits goes past them and tells whether there was one.
func (p *parser) digits() bool {
	begin := p.at
	for c := p.peek(); c >= '0' && c <= '9'; c = p.peek() {
		p.at++
	}
	return p.at > begin
}

// text reads a string from its opening quote to its closing one.
func (p *parser) text() (string, error) {
	var content []byte
	for p.at++; ; {
		switch c := p.peek(); {
		case p.at >= len(p.data) || c < ' ':
			return "", p.unexpected()
		case c == '"':
			p.at++
			return string(content), nil
		case c == '\\':
			p.at++
			decoded, err := p.escape()
			if err != nil {
				return "", err
			}
			content = utf8.AppendRune(content, decoded)
		default:
			decoded, size := utf8.DecodeRune(p.data[p.at:])
			if decoded == utf8.RuneError && size == 1 {
				return "", errors.New("not UTF-8")
			}
			content = append(content, p.data[p.at:p.at+size]...)
			p.at += size
		}
	}
}

// escape reads what follows a backslash.
func (p *parser) escape() (rune, error) {
	c := p.peek()
	switch c {
	case '"', '\\', '/':
	case 'b':
		c = '\b'
	case 'f':
		c = '\f'
	case 'n':
		c = '\n'
	case 'r':
		c = '\r'
	case 't':
		c = '\t'
	case 'u':
		return p.unicode()
	default:
		return 0, p.unexpected()
	}
	p.at++
	return rune(c), nil
}

// unicode reads u and four digits, twice for a surrogate pair; half a pair becomes U+FFFD.
func (p *parser) unicode() (rune, error) {
	high, err := p.hex()
	if err != nil || !utf16.IsSurrogate(high) {
		return high, err
	}
	if p.at+1 < len(p.data) && p.data[p.at] == '\\' && p.data[p.at+1] == 'u' {
		mark := p.at
		p.at++
		low, err := p.hex()
		if err != nil {
			return 0, err
		}
		if pair := utf16.DecodeRune(high, low); pair != utf8.RuneError {
			return pair, nil
		}
		p.at = mark
	}
	return utf8.RuneError, nil
}

func (p *parser) hex() (rune, error) {
	p.at++ // the u
	if p.at+4 > len(p.data) {
		p.at = len(p.data)
		return 0, p.unexpected()
	}
	value, err := strconv.ParseUint(string(p.data[p.at:p.at+4]), 16, 16)
	if err != nil {
		return 0, p.unexpected()
	}
	p.at += 4
	return rune(value), nil
}

// AppendText adds a quoted string to a document that is being written.
func AppendText(document []byte, content string) []byte {
	document = append(document, '"')
	for _, c := range content { // bytes that are not UTF-8 come as U+FFFD
		switch {
		case c == '"' || c == '\\':
			document = append(document, '\\', byte(c))
		case c < ' ' || c == 0x7f:
			document = append(document, '\\', 'u', '0', '0')
			const digits = "0123456789abcdef"
			document = append(document, digits[c>>4], digits[c&0xf])
		default:
			document = utf8.AppendRune(document, c)
		}
	}
	return append(document, '"')
}
