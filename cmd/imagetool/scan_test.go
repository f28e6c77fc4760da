package main

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/iotest"
)

// Secrets are made when the tests run: none is in the repository.
func ed25519Key(t *testing.T) string {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
}

func rsaKey(t *testing.T) string {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)}))
}

// An access key id and a secret in the form of real ones, put together so that scanners of
// repositories do not take them for leaked.
const (
	keyID  = "AKIA" + "Q5ZW3NK7XUPLM2TB"
	secret = "q9Xo3v+Lr7/" + "Tn2KdPz8WbYcE5mJ4hUgAa1SfQeRi"
	sha1   = "da39a3ee5e6b4b0d3255bfef95601890afd80709"
)

// scannerFor makes a scanner whose buffer goes with the test.
func scannerFor(tb testing.TB, forbidden ...string) *scanner {
	tb.Helper()
	s, err := newScanner(newMatcher(forbidden))
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { syscall.Munmap(s.buffer) })
	return s
}

func rulesIn(t *testing.T, text string, forbidden ...string) (rules []string) {
	t.Helper()
	scannerFor(t, forbidden...).scan(strings.NewReader(text), func(h hit) { rules = append(rules, h.rule) })
	return rules
}

func TestContentRules(t *testing.T) {
	key := ed25519Key(t)
	header, _, _ := strings.Cut(key, "\n")
	rsa := rsaKey(t)
	encrypted := strings.Replace(rsa, "-----\n", "-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,0123456789ABCDEF\n\n", 1)
	openssh := strings.ReplaceAll(rsa, "RSA PRIVATE", "OPENSSH PRIVATE")
	forbidden := "AAAAC3NzaC1lZDI1NTE5AAAAIJ1Zb"
	for name, c := range map[string]struct {
		text string
		want []string
	}{
		"PKCS#8":                   {key, []string{"private-key"}},
		"PKCS#1":                   {rsa, []string{"private-key"}},
		"OpenSSH":                  {openssh, []string{"private-key"}},
		"encrypted":                {encrypted, []string{"private-key"}},
		"two":                      {"x" + key + rsa, []string{"private-key", "private-key"}},
		"Windows line ends":        {strings.ReplaceAll(key, "\n", "\r\n"), []string{"private-key"}},
		"in JSON":                  {`{"k": "` + strings.ReplaceAll(key, "\n", `\n`) + `"}`, []string{"private-key"}},
		"indented in YAML":         {strings.ReplaceAll(key, "\n", "\n    "), []string{"private-key"}},
		"without its end line":     {rsa[:200], []string{"private-key"}},
		"header in a program":      {"\x00" + header + "\x00-----END PRIVATE KEY-----\x00", nil},
		"header in a manual":       {header + "\nMIIEpAIBAAKCAQEA...\n-----END PRIVATE KEY-----\n", nil},
		"header and a sentence":    {header + "\nis how a private key begins, and then comes base64 text.\n", nil},
		"placeholder":              {header + "\n" + strings.Repeat("X", 64) + "\n", nil},
		"no line end":              {header + strings.Repeat("MC4CAQAwBQYDK2Vw", 8), nil},
		"public key":               {strings.ReplaceAll(key, "PRIVATE", "PUBLIC"), nil},
		"certificate":              {strings.ReplaceAll(key, "PRIVATE KEY", "CERTIFICATE"), nil},
		"no BEGIN":                 {strings.Replace(key, "BEGIN", "START", 1), nil},
		"aws: configuration":       {"[default]\naws_access_key_id = " + keyID + "\naws_secret_access_key = " + secret + "\n", []string{"aws-credentials"}},
		"aws: shell":               {"export AWS_ACCESS_KEY_ID=" + keyID + "\nexport AWS_SECRET_ACCESS_KEY=" + secret + "\n", []string{"aws-credentials"}},
		"aws: shell, ids first":    {"SECRET=" + secret + "\nID=" + keyID + "\n", []string{"aws-credentials"}},
		"aws: metadata":            {`{"AccessKeyId" : "` + "ASIA" + keyID[4:] + `", "SecretAccessKey" : "` + secret + `"}`, []string{"aws-credentials"}},
		"aws: id alone":            {"id " + keyID + " is no secret", nil},
		"aws: id and digest":       {keyID + " " + sha1, nil},
		"aws: documentation":       {"AKIAIOSFODNN7EXAMPLE " + secret, nil},
		"aws: far away":            {keyID + strings.Repeat(" .", 400) + secret, nil},
		"aws: part of base64":      {"x" + keyID + " " + secret, nil},
		"aws: longer than an id":   {keyID + "Q " + secret, nil},
		"aws: digits base32 lacks": {"AKIA" + "0189ABCDEFGHIJKL" + " " + secret, nil},
		"token":                    {"TOKEN=" + githubToken + "\n", []string{"token"}},
		"token: in a URL":          {"https://x:" + githubToken + "@github.com/", []string{"token"}},
		"token: placeholder":       {"ghp_" + strings.Repeat("x", 36), nil},
		"token: too long":          {githubToken + "a", nil},
		"token: part of a word":    {"a" + githubToken, nil},
		"token: cut":               {githubToken[:39], nil},
		"forbidden":                {"ssh-ed25519 " + forbidden + " x", []string{"forbidden"}},
		"forbidden, its start":     {forbidden[:28], nil},
		"nothing":                  {"", nil},
	} {
		if got := rulesIn(t, c.text, forbidden); !slices.Equal(got, c.want) {
			t.Errorf("%s: got %v, want %v", name, got, c.want)
		}
	}
}

// TestScanPositions puts a secret at every place that could be special: around the ends of windows,
// each residue of the stride, the ends of the stream.
func TestScanPositions(t *testing.T) {
	key := ed25519Key(t)
	const size = chunkSize + 3*lookAhead
	starts := []int{0, 1, size - len(key)}
	for _, edge := range []int{chunkSize - lookAhead, chunkSize} {
		for delta := -len(key) - 40; delta <= 40; delta += 7 {
			starts = append(starts, edge+delta)
		}
		for delta := range 2 * stride {
			starts = append(starts, edge-delta)
		}
	}
	scanner := scannerFor(t)
	background := bytes.Repeat([]byte("-----BEGIN KEY 'PRIVATE' "), size/25+1)[:size]
	for _, filler := range [][]byte{make([]byte, size), background} {
		for _, start := range starts {
			data := slices.Clone(filler)
			copy(data[start:], key)
			var offsets []int64
			total, err := scanner.scan(bytes.NewReader(data), func(h hit) { offsets = append(offsets, h.offset) })
			want := int64(start + strings.Index(key, keyHeaderEnd))
			if err != nil || total != size || !slices.Equal(offsets, []int64{want}) {
				t.Fatalf("key at %d: found at %v, want %d; %d bytes, error %v", start, offsets, want, total, err)
			}
		}
	}
}

func TestScanErrors(t *testing.T) {
	broken := iotest.ErrReader(bytes.ErrTooLarge)
	if _, err := scannerFor(t).scan(broken, func(hit) {}); err != bytes.ErrTooLarge {
		t.Errorf("a read error became %v", err)
	}
}

// TestFingerprints: the same key is known again however it is written, and another is another.
func TestFingerprints(t *testing.T) {
	fingerprint := func(text string) (f string) {
		scannerFor(t).scan(strings.NewReader(text), func(h hit) { f = h.fingerprint })
		return f
	}
	key, other := rsaKey(t), rsaKey(t)
	want := fingerprint(key)
	if want == "" || want != fingerprint(strings.ReplaceAll(key, "\n", `\n`)) || want != fingerprint("  "+strings.ReplaceAll(key, "\n", "\n  ")) {
		t.Error("the same key has several fingerprints")
	}
	if want == fingerprint(other) {
		t.Error("two keys have one fingerprint")
	}
}

func BenchmarkScan(b *testing.B) {
	data := make([]byte, 16<<20)
	rand.Read(data)
	scanner := scannerFor(b, "AAAAC3NzaC1lZDI1NTE5AAAAIJ1Zb")
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		scanner.scan(bytes.NewReader(data), func(hit) {})
	}
}
