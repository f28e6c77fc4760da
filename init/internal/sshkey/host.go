package sshkey

import (
	"crypto/ecdh"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"io"
)

// A HostKey is a new key in the two forms in which sshd keeps it.
type HostKey struct {
	File    string // name of the private file in /etc/ssh; the public one has .pub added
	Private []byte
	Public  []byte
}

const hostComment = "instant-init"

// GenerateHostKeys makes an Ed25519 and an ECDSA P-256 key. No RSA key: making one takes long, and every client
// of the last ten years knows one of these two.
func GenerateHostKeys() ([]HostKey, error) {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("generate an Ed25519 key: %w", err)
	}
	scalar, err := ecdh.P256().GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("generate an ECDSA key: %w", err)
	}
	return []HostKey{
		newHostKey("ssh_host_ed25519_key", ed25519Fields(public), private),
		newHostKey("ssh_host_ecdsa_key", ecdsaFields(scalar.PublicKey().Bytes()), mpint(scalar.Bytes())),
	}, nil
}

// The fields of the public halves: RFC 8709 section 4, RFC 5656 section 3.1.
func ed25519Fields(public []byte) [][]byte { return [][]byte{[]byte("ssh-ed25519"), public} }

func ecdsaFields(point []byte) [][]byte {
	return [][]byte{[]byte("ecdsa-sha2-nistp256"), []byte("nistp256"), point}
}

// newHostKey serialises by OpenSSH's PROTOCOL.key: for both types the private section is the public fields
// followed by one secret.
func newHostKey(file string, public [][]byte, secret []byte) HostKey {
	blob := pack(public...)
	// Two equal numbers let OpenSSH tell a right passphrase from a wrong one. Here there is none, and a
	// constant would do; OpenSSH draws them, so does this.
	check := make([]byte, 4)
	_, _ = io.ReadFull(rand.Reader, check) // crypto/rand never fails, it ends the program
	section := append(append([]byte{}, check...), check...)
	section = append(section, blob...)
	section = append(section, pack(secret, []byte(hostComment))...)
	for pad := byte(1); len(section)%8 != 0; pad++ {
		section = append(section, pad)
	}
	body := append([]byte("openssh-key-v1\x00"), pack([]byte("none"), []byte("none"), nil)...)
	body = binary.BigEndian.AppendUint32(body, 1)
	body = append(body, pack(blob, section)...)
	line := string(public[0]) + " " + base64.StdEncoding.EncodeToString(blob) + " " + hostComment + "\n"
	return HostKey{
		File:    file,
		Private: armour(body),
		Public:  []byte(line),
	}
}

// armour is PROTOCOL.key's: base64 in lines of 70 characters.
func armour(body []byte) []byte {
	out := []byte("-----BEGIN OPENSSH PRIVATE KEY-----\n")
	for text := base64.StdEncoding.EncodeToString(body); text != ""; {
		length := min(70, len(text))
		out = append(append(out, text[:length]...), '\n')
		text = text[length:]
	}
	return append(out, "-----END OPENSSH PRIVATE KEY-----\n"...)
}

// pack writes each field as SSH's string (RFC 4251, section 5): its length in four bytes, then its bytes.
func pack(fields ...[]byte) []byte {
	var out []byte
	for _, field := range fields {
		out = binary.BigEndian.AppendUint32(out, uint32(len(field)))
		out = append(out, field...)
	}
	return out
}

// mpint returns the bytes of SSH's positive integer: no leading zeros, but one where the top bit is set.
func mpint(value []byte) []byte {
	for len(value) > 0 && value[0] == 0 {
		value = value[1:]
	}
	if len(value) > 0 && value[0]&0x80 != 0 {
		value = append([]byte{0}, value...)
	}
	return value
}
