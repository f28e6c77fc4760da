package secrets

import (
	"bytes"
	"encoding/binary"
)

// Keys in binary form are found where a file begins, at a block; so are containers of keys. Of their bytes the most
// frequent ones of programs, 0 to 6, would be sampled all over a disk.

// judgeOpenSSH judges OpenSSH's own form without PEM (PROTOCOL.key): behind the magic are a cipher and a key derivation.
func judgeOpenSSH(head []byte) bool {
	rest, ok := bytes.CutPrefix(head, []byte("openssh-key-v1\x00"))
	if !ok || len(rest) < 128 || binary.BigEndian.Uint32(rest) > 64 {
		return false
	}
	cipher := rest[4 : 4+binary.BigEndian.Uint32(rest)]
	return len(cipher) >= 4 && !bytes.ContainsFunc(cipher, func(r rune) bool { return r < '!' || r > '~' }) && alphabet(rest[:128]) >= minKeyAlphabet
}

// isTor is called at the text in an onion service's secret key: three more characters, three zeros, and the key.
func isTor(window []byte, at, _ int) bool {
	const header = len("ed25519v1-secret: type0 ==\x00\x00\x00")
	return at+header+64 <= len(window) && alphabet(window[at+header:at+header+64]) >= minKeyAlphabet
}

// Files begin at a block of the file system, the smallest of which has 1024 bytes.
const blockSize = 1 << 10

// searchBlocks looks for keys and containers of keys where files begin. The window begins at a block.
func searchBlocks(window []byte, from, to int, report func(Hit)) {
	for at := (from + blockSize - 1) / blockSize * blockSize; at < to; at += blockSize {
		detail, found := judgeBlock(window[at:min(len(window), at+LookAhead)])
		if found {
			report(Hit{"private-key", detail, keyFingerprint(window[at:min(len(window), at+blockSize)]), int64(at)})
		}
	}
}

// judgeBlock judges the start of a file.
func judgeBlock(head []byte) (detail string, found bool) {
	if len(head) < 32 {
		return "", false
	}
	switch binary.BigEndian.Uint32(head) {
	case 0xfeedfeed, 0xcececece: // Java's key stores: version, count, and the first entry's kind, 1 for a key
		return "Java key store with a private key", head[4] == 0 && binary.BigEndian.Uint32(head[8:]) < 1000 && binary.BigEndian.Uint32(head[12:]) == 1
	case 0x03d9a29a: // KeePass, and its version
		version := binary.LittleEndian.Uint32(head[4:])
		return "KeePass database", version>>8 == 0xb54bfb
	}
	switch head[0] {
	case 'S':
		return "SSH 1 private key", isSSH1(head)
	case 'o':
		return "OpenSSH private key in binary", judgeOpenSSH(head)
	case 0x05:
		return "Kerberos key table", isKeytab(head)
	case 0x30:
		return judgeDERFile(head)
	case 0x94, 0x95, 0xc5:
		return "OpenPGP secret key", isPGPSecret(head)
	}
	return "", false
}

// element returns the content of a DER element of that tag, and what is behind it. A length of more than 64 KiB, or one
// beyond the text, is none.
func element(text []byte, tag byte) (content, rest []byte, ok bool) {
	if len(text) < 2 || text[0] != tag {
		return nil, nil, false
	}
	length, header := int(text[1]), 2
	switch {
	case length == 0x81 && len(text) > 2:
		length, header = int(text[2]), 3
	case length == 0x82 && len(text) > 3:
		length, header = int(text[2])<<8|int(text[3]), 4
	case length >= 0x80:
		return nil, nil, false
	}
	if header+length > len(text) {
		return nil, nil, false
	}
	return text[header : header+length], text[header+length:], true
}

// judgeDERFile judges keys by their structure: PKCS#1 and DSA (a version and five integers or more), SEC 1, PKCS#8, its
// encrypted form, and PKCS#12 with a bag for keys.
func judgeDERFile(head []byte) (detail string, found bool) {
	if bag := []byte("\x2a\x86\x48\x86\xf7\x0d\x01\x0c\x0a\x01"); len(head) > 8 && bytes.Contains(head[:16], []byte("\x02\x01\x03\x30")) {
		i := bytes.Index(head, bag)
		return "PKCS#12 file with a private key", i >= 0 && i+len(bag) < len(head) && (head[i+len(bag)] == 1 || head[i+len(bag)] == 2)
	}
	content, _, ok := element(head, 0x30)
	if !ok {
		return "", false
	}
	if _, _, ok := element(content, 0x30); ok && bytes.HasPrefix(content[2:], []byte("\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x05")) {
		return "encrypted PKCS#8 private key in DER", true
	}
	version, rest, ok := element(content, 0x02)
	if !ok || len(version) != 1 {
		return "", false
	}
	integers := 0
	for {
		integer, behind, ok := element(rest, 0x02)
		if !ok || len(integer) == 0 {
			break
		}
		integers, rest = integers+1, behind
	}
	if version[0] == 0 && integers >= 5 && len(rest) == 0 {
		return "private key in DER", true
	}
	octets, _, ok := element(rest, 0x04)
	if version[0] == 1 && integers == 0 && ok && len(octets) >= 28 && len(octets) <= 66 && alphabet(octets) >= minKeyAlphabet {
		return "EC private key in DER", true
	}
	algorithm, behind, ok := element(rest, 0x30)
	if version[0] > 1 || integers != 0 || !ok {
		return "", false
	}
	_, _, ok = element(algorithm, 0x06)
	key, _, isKey := element(behind, 0x04)
	return "PKCS#8 private key in DER", ok && isKey && len(key) >= 32 && alphabet(key) >= minKeyAlphabet
}

// isKeytab: version 5.2, an entry's length, its count of components, and a realm in capitals or at least in text.
func isKeytab(head []byte) bool {
	if head[1] != 2 {
		return false
	}
	size, components, realm := binary.BigEndian.Uint32(head[2:]), binary.BigEndian.Uint16(head[6:]), int(binary.BigEndian.Uint16(head[8:]))
	if size < 16 || size > 1024 || components < 1 || components > 8 || realm < 2 || realm > 20 {
		return false
	}
	for _, c := range head[10 : 10+realm] {
		if c <= ' ' || c > '~' {
			return false
		}
	}
	return true
}

// isPGPSecret: a secret key's packet (RFC 9580, 5.5.3): version 4, a time, an algorithm, and the first number's bits.
func isPGPSecret(head []byte) bool {
	header := map[byte]int{0x94: 2, 0x95: 3, 0xc5: 2}[head[0]]
	if head[0] == 0xc5 && head[1] >= 192 {
		header = 3
	}
	packet := head[header:]
	if packet[0] != 4 {
		return false
	}
	const since1991, until2100 = 662688000, 4102444800
	if made := binary.BigEndian.Uint32(packet[1:]); made < since1991 || made > until2100 {
		return false
	}
	switch packet[5] {
	case 1, 2, 3, 16, 17: // RSA, Elgamal, DSA: the length of the first number in bits, whose highest one is set
		bits := binary.BigEndian.Uint16(packet[6:])
		return bits >= 512 && bits <= 16384 && packet[8]>>((bits-1)%8) == 1
	case 18, 19, 22: // curves: the length of an object identifier and its start
		return packet[6] >= 5 && packet[6] <= 12 && (packet[7] == 0x2b || packet[7] == 0x2a)
	}
	return false
}
