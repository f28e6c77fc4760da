package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"strings"
)

// Private keys in PEM and OpenSSH form: -----BEGIN <kind> PRIVATE KEY-----, a line end, a body.
const (
	keyHeaderStart = "-----BEGIN "
	keyHeaderEnd   = "PRIVATE KEY-----"
	// Programs and manuals hold the header alone, or with a few characters and dots. The smallest real
	// body, an Ed25519 key in PKCS#8, has 64 characters.
	minKeyBody     = 48
	minKeyAlphabet = 12 // a placeholder repeats few characters
	// A fingerprint covers the start of a body: far enough to tell keys apart (OpenSSH's begin with 80
	// characters that are the same for all), not so far that a file in two extents has another on the
	// bare device.
	fingerprintDigits = 192
)

// judgePrivateKey is called at "PRIVATE KEY-----".
func judgePrivateKey(window []byte, at int) (detail, fingerprint string, found bool) {
	before := window[max(0, at-40):at]
	start := bytes.LastIndex(before, []byte(keyHeaderStart))
	if start < 0 {
		return "", "", false
	}
	kind := string(before[start+len(keyHeaderStart):])
	if strings.Trim(kind, "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 ") != "" {
		return "", "", false
	}
	body, ok := skipLineEnd(window[at+len(keyHeaderEnd):])
	if !ok {
		return "", "", false
	}
	digits := base64Digits(skipPEMHeaders(body))
	if len(digits) < minKeyBody || alphabet(digits) < minKeyAlphabet {
		return "", "", false
	}
	sum := sha256.Sum256(digits[:min(len(digits), fingerprintDigits)])
	return strings.TrimSpace(kind+"PRIVATE KEY") + " with a body", hex.EncodeToString(sum[:8]), true
}

// skipLineEnd wants a line end, as such or written \n as in a JSON string.
func skipLineEnd(text []byte) ([]byte, bool) {
	for _, end := range []string{"\n", "\r\n", `\n`, `\r\n`} {
		if rest, ok := bytes.CutPrefix(text, []byte(end)); ok {
			return rest, true
		}
	}
	return nil, false
}

// skipPEMHeaders drops the Proc-Type and DEK-Info lines of an encrypted key.
func skipPEMHeaders(text []byte) []byte {
	for range 4 {
		line, rest, ok := bytes.Cut(text, []byte("\n"))
		if !ok || len(line) > 200 || !bytes.Contains(line, []byte(": ")) {
			break
		}
		text = rest
	}
	return text
}

// base64Digits returns the base64 characters across white space and written line ends, up to the
// first other character.
func base64Digits(text []byte) (digits []byte) {
	for i := 0; i < len(text); i++ {
		c := text[i]
		switch {
		case c == ' ' || c == '\t' || c == '\r' || c == '\n':
		case c == '\\' && i+1 < len(text) && (text[i+1] == 'n' || text[i+1] == 'r'):
			i++
		case isBase64(c):
			digits = append(digits, c)
		default:
			return digits
		}
	}
	return digits
}

// alphabet counts the different characters.
func alphabet(text []byte) (count int) {
	var seen [256]bool
	for _, c := range text {
		if !seen[c] {
			seen[c] = true
			count++
		}
	}
	return count
}

func isBase64(c byte) bool {
	return c|0x20 >= 'a' && c|0x20 <= 'z' || c >= '0' && c <= '9' || c == '+' || c == '/' || c == '='
}

const (
	base32          = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
	accessKeyLength = 20 // AKIA or ASIA and 16 of base32's characters
	secretLength    = 40
	secretAlphabet  = 18 // a random secret has about 30 different characters
	secretDistance  = 512
)

// accessKeyPattern is a key id's: A, K or S, I, A, then base32.
func accessKeyPattern() (pattern [stride]string) {
	copy(pattern[:], []string{"A", "KS", "I", "A"})
	for i := 4; i < stride; i++ {
		pattern[i] = base32
	}
	return pattern
}

// base32Follows: the four letters it begins with are base32 too, and behind each of the first sixteen
// characters there are at least four more.
func base32Follows(window []byte, sample int) bool {
	end := sample + accessKeyLength - stride + 1
	if end > len(window) {
		return false
	}
	for _, c := range window[sample+1 : end] {
		if (c < 'A' || c > 'Z') && (c < '2' || c > '7') {
			return false
		}
	}
	return true
}

// judgeAccessKey is called at AKIA or ASIA. A key id alone is no secret, and four letters are found in
// every binary: it takes a whole id and, near it, something that can only be its secret.
func judgeAccessKey(window []byte, at int) (detail, fingerprint string, found bool) {
	if at+accessKeyLength > len(window) || at > 0 && window[at-1] != '=' && isBase64(window[at-1]) {
		return "", "", false
	}
	end := at + accessKeyLength
	if len(bytes.Trim(window[at:end], base32)) > 0 {
		return "", "", false
	}
	if end < len(window) && isBase64(window[end]) && window[end] != '=' {
		return "", "", false
	}
	if bytes.HasSuffix(window[at:end], []byte("EXAMPLE")) { // AWS's documentation
		return "", "", false
	}
	if holdsSecret(window[max(0, at-secretDistance):at]) ||
		holdsSecret(window[end:min(len(window), end+secretDistance)]) {
		return "access key id with a secret near it", "", true
	}
	return "", "", false
}

// holdsSecret looks for a run of exactly 40 base64 characters that mixes cases and digits, which
// hexadecimal digests, also 40 characters long, do not.
func holdsSecret(text []byte) bool {
	for start := 0; start < len(text); {
		length := 0
		for start+length < len(text) && isBase64(text[start+length]) {
			length++
		}
		run := bytes.TrimLeft(text[start:start+length], "=") // name=SECRET
		if len(run) > secretLength && bytes.IndexByte(run, '=') == len(run)-secretLength-1 {
			run = run[len(run)-secretLength:] // NAME=SECRET, where the name is letters only
		}
		if len(run) == secretLength && looksRandom(run) {
			return true
		}
		start += length + 1
	}
	return false
}

func looksRandom(text []byte) bool {
	var upper, lower, digit int
	for _, c := range text {
		switch {
		case c >= 'A' && c <= 'Z':
			upper++
		case c >= 'a' && c <= 'z':
			lower++
		case c >= '0' && c <= '9':
			digit++
		}
	}
	return upper > 1 && lower > 1 && digit > 0 && alphabet(text) >= secretAlphabet
}

// GitHub's tokens: ghp_, gho_, ghu_, ghs_ or ghr_ and 36 letters and digits, the last six a checksum
// (github.blog, "Behind GitHub's new authentication token formats").
const (
	alphanumeric  = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
	tokenPrefix   = 4
	tokenLength   = tokenPrefix + 36
	tokenAlphabet = 16 // 36 random characters have about 28 different ones
)

func tokenPattern() (pattern [stride]string) {
	copy(pattern[:], []string{"g", "h", "pousr", "_"})
	for i := tokenPrefix; i < stride; i++ {
		pattern[i] = alphanumeric
	}
	return pattern
}

// alphanumericsFollow: behind each of the first sixteen characters come 24 more, but for the underscore
// among the first four.
func alphanumericsFollow(window []byte, sample int) bool {
	end := sample + tokenLength - stride + 1
	if end > len(window) {
		return false
	}
	for i, c := range window[sample+1 : end] {
		letter := c|0x20 >= 'a' && c|0x20 <= 'z'
		if !letter && (c < '0' || c > '9') && !(c == '_' && i < tokenPrefix-1) {
			return false
		}
	}
	return true
}

// judgeToken is called at gh?_ and twelve letters and digits.
func judgeToken(window []byte, at int) (detail, fingerprint string, found bool) {
	end := at + tokenLength
	if end > len(window) || at > 0 && isWord(window[at-1]) || end < len(window) && isWord(window[end]) {
		return "", "", false
	}
	digits := window[at+tokenPrefix : end]
	if len(bytes.Trim(digits, alphanumeric)) > 0 || alphabet(digits) < tokenAlphabet {
		return "", "", false
	}
	return "token of GitHub", "", true
}

func isWord(c byte) bool {
	return c == '_' || c|0x20 >= 'a' && c|0x20 <= 'z' || c >= '0' && c <= '9'
}
