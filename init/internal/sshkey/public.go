// Package sshkey reads and writes SSH keys in OpenSSH's formats: public keys that come from outside, and the
// host keys of a machine.
package sshkey

import (
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"strings"
)

// A PublicKey is one line of an authorized_keys file, without options.
type PublicKey struct {
	Type, Base64, Comment string
}

// String is the line, with the parts that were parsed and nothing else.
func (k PublicKey) String() string {
	return strings.TrimSpace(k.Type + " " + k.Base64 + " " + k.Comment)
}

// Same tells whether both lines hold the same key; comments do not count.
func (k PublicKey) Same(other PublicKey) bool {
	return k.Type == other.Type && k.Base64 == other.Base64
}

// ParsePublicKey reads one line "type base64 [comment]". The type must be repeated inside the key (RFC 4253,
// section 6.6), so that nothing but a key, options for example, can pass.
func ParsePublicKey(line string) (PublicKey, error) {
	line = strings.TrimSpace(line)
	kind, rest, _ := strings.Cut(line, " ")
	body, comment, _ := strings.Cut(strings.TrimSpace(rest), " ")
	blob, err := base64.StdEncoding.DecodeString(body)
	if err != nil || len(blob) < 4 || strings.ContainsAny(body, "\r\n") {
		return PublicKey{}, fmt.Errorf("not a public key: %.60q", line)
	}
	inner := blob[4:]
	length := binary.BigEndian.Uint32(blob)
	if kind == "" || uint64(length) >= uint64(len(inner)) || string(inner[:length]) != kind {
		return PublicKey{}, fmt.Errorf("not a public key of type %.40q: %.60q", kind, line)
	}
	for _, c := range comment {
		if c < ' ' || c == 0x7f {
			return PublicKey{}, fmt.Errorf("a control character in the comment of %.60q", line)
		}
	}
	return PublicKey{Type: kind, Base64: body, Comment: strings.TrimSpace(comment)}, nil
}

// ParsePublicKeys reads one key per line, skipping empty lines and comments; no key at all is an error.
func ParsePublicKeys(text string) ([]PublicKey, error) {
	var keys []PublicKey
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		key, err := ParsePublicKey(line)
		if err != nil {
			return nil, err
		}
		keys = append(keys, key)
	}
	if len(keys) == 0 {
		return nil, fmt.Errorf("no public key in %.60q", text)
	}
	return keys, nil
}

// Merge adds to the content of an authorized_keys file the keys that it lacks. What is there stays as it is,
// options and comments included, because its owner may have added to it.
func Merge(content string, keys []PublicKey) string {
	for _, key := range keys {
		if !holds(content, key) {
			if content != "" && !strings.HasSuffix(content, "\n") {
				content += "\n"
			}
			content += key.String() + "\n"
		}
	}
	return content
}

func holds(content string, key PublicKey) bool {
	for line := range strings.Lines(content) {
		if present, err := ParsePublicKey(line); err == nil && present.Same(key) {
			return true
		}
	}
	return false
}
