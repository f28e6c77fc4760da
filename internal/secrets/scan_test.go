package secrets

import (
	"bytes"
	"crypto/rand"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"instantenv/internal/secrets/secretstest"
)

const sha1 = "da39a3ee5e6b4b0d3255bfef95601890afd80709"

// scannerFor makes a scanner whose buffer goes with the test.
func scannerFor(tb testing.TB, forbidden ...string) *Scanner {
	tb.Helper()
	s, err := NewScanner(NewMatcher(forbidden))
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { s.Close() })
	return s
}

func rulesIn(t *testing.T, text string, forbidden ...string) (rules []string) {
	t.Helper()
	scannerFor(t, forbidden...).Scan(strings.NewReader(text), func(h Hit) { rules = append(rules, h.Rule) })
	return rules
}

func TestContentRules(t *testing.T) {
	key := secretstest.Ed25519Key(t)
	header, _, _ := strings.Cut(key, "\n")
	rsa := secretstest.RSAKey(t)
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
		"no line end, repeated":    {header + strings.Repeat("MC4CAQAwBQYDK2Vw", 8), nil},
		"public key":               {strings.ReplaceAll(key, "PRIVATE", "PUBLIC"), nil},
		"certificate":              {strings.ReplaceAll(key, "PRIVATE KEY", "CERTIFICATE"), nil},
		"no BEGIN":                 {strings.Replace(key, "BEGIN", "START", 1), nil},
		"aws: configuration":       {"[default]\naws_access_key_id = " + secretstest.KeyID + "\naws_secret_access_key = " + secretstest.Secret + "\n", []string{"aws-credentials"}},
		"aws: shell":               {"export AWS_ACCESS_KEY_ID=" + secretstest.KeyID + "\nexport AWS_SECRET_ACCESS_KEY=" + secretstest.Secret + "\n", []string{"aws-credentials"}},
		"aws: shell, ids first":    {"SECRET=" + secretstest.Secret + "\nID=" + secretstest.KeyID + "\n", []string{"aws-credentials"}},
		"aws: metadata":            {`{"AccessKeyId" : "` + "ASIA" + secretstest.KeyID[4:] + `", "SecretAccessKey" : "` + secretstest.Secret + `"}`, []string{"aws-credentials"}},
		"aws: id alone":            {"id " + secretstest.KeyID + " is no secret", nil},
		"aws: id and digest":       {secretstest.KeyID + " " + sha1, nil},
		"aws: documentation":       {"AKIAIOSFODNN7EXAMPLE " + secretstest.Secret, nil},
		"aws: far away":            {secretstest.KeyID + strings.Repeat(" .", 400) + secretstest.Secret, nil},
		"aws: part of base64":      {"x" + secretstest.KeyID + " " + secretstest.Secret, nil},
		"aws: longer than an id":   {secretstest.KeyID + "Q " + secretstest.Secret, nil},
		"aws: digits base32 lacks": {"AKIA" + "0189ABCDEFGHIJKL" + " " + secretstest.Secret, nil},
		"token":                    {"TOKEN=" + secretstest.GitHubToken + "\n", []string{"token"}},
		"token: in a URL":          {"https://x:" + secretstest.GitHubToken + "@github.com/", []string{"token"}},
		"token: of the service":    {"Authorization: Bearer ie_" + secretstest.Random(t, `[0-9A-Za-z]{49}`) + "\n", []string{"token"}},
		"token: end of a name":     {"cookie_" + secretstest.Random(t, `[0-9A-Za-z]{49}`) + "\n", nil},
		"token: placeholder":       {"ghp_" + strings.Repeat("x", 36), nil},
		"token: too long":          {secretstest.GitHubToken + "a", nil},
		"token: part of a word":    {"a" + secretstest.GitHubToken, nil},
		"token: cut":               {secretstest.GitHubToken[:39], nil},
		"forbidden":                {"ssh-ed25519 " + forbidden + " x", []string{"forbidden"}},
		"forbidden, its start":     {forbidden[:28], nil},
		"nothing":                  {"", nil},
	} {
		if got := rulesIn(t, c.text, forbidden); !slices.Equal(got, c.want) {
			t.Errorf("%s: got %v, want %v", name, got, c.want)
		}
	}
}

// TestScanPositions puts a secretstest.Secret at every place that could be special: around the ends of windows,
// each residue of the stride, the ends of the stream.
func TestScanPositions(t *testing.T) {
	key := secretstest.Ed25519Key(t)
	const size = chunkSize + 3*LookAhead
	starts := []int{0, 1, size - len(key)}
	for _, edge := range []int{chunkSize - LookAhead, chunkSize} {
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
			total, err := scanner.Scan(bytes.NewReader(data), func(h Hit) { offsets = append(offsets, h.Offset) })
			want := int64(start + strings.Index(key, "PRIVATE KEY-----"))
			if err != nil || total != size || !slices.Equal(offsets, []int64{want}) {
				t.Fatalf("key at %d: found at %v, want %d; %d bytes, error %v", start, offsets, want, total, err)
			}
		}
	}
}

// TestScanParts: what lies across the end of a part is found once, by the part that it begins in.
func TestScanParts(t *testing.T) {
	key := secretstest.Ed25519Key(t)
	scanner := scannerFor(t)
	const size, middle = 3 * chunkSize, chunkSize + 3*PartAlignment
	for _, start := range []int{0, middle - len(key) - 1, middle - 60, middle - 12, middle - 11, middle, middle + 1, size - len(key)} {
		data := make([]byte, size)
		copy(data[start:], key)
		var offsets []int64
		var total int64
		for _, part := range [][2]int64{{0, middle}, {middle, size}} {
			count, err := scanner.ScanPart(bytes.NewReader(data), part[0], part[1], func(h Hit) { offsets = append(offsets, h.Offset) })
			if err != nil {
				t.Fatal(err)
			}
			total += count
		}
		if want := int64(start + strings.Index(key, "PRIVATE KEY-----")); total != size || !slices.Equal(offsets, []int64{want}) {
			t.Errorf("key at %d: found at %v, want %d; %d bytes", start, offsets, want, total)
		}
	}
}

func TestScanErrors(t *testing.T) {
	broken := iotest.ErrReader(bytes.ErrTooLarge)
	if _, err := scannerFor(t).Scan(broken, func(Hit) {}); err != bytes.ErrTooLarge {
		t.Errorf("a read error became %v", err)
	}
}

// TestFingerprints: the same key is known again however it is written, and another is another.
func TestFingerprints(t *testing.T) {
	fingerprint := func(text string) (f string) {
		scannerFor(t).Scan(strings.NewReader(text), func(h Hit) { f = h.Fingerprint })
		return f
	}
	key, other := secretstest.RSAKey(t), secretstest.RSAKey(t)
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
		scanner.Scan(bytes.NewReader(data), func(Hit) {})
	}
}

// BenchmarkScanText reads what most of a disk's text is like: sources.
func BenchmarkScanText(b *testing.B) {
	var data []byte
	for len(data) < 16<<20 {
		for _, name := range []string{"match.go", "tokens.go", "values.go", "scan_test.go"} {
			text, err := os.ReadFile(name)
			if err != nil {
				b.Fatal(err)
			}
			data = append(data, text...)
		}
	}
	scanner := scannerFor(b)
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		scanner.Scan(bytes.NewReader(data), func(Hit) {})
	}
}
