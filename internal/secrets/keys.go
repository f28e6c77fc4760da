package secrets

import (
	"bytes"
	"strings"
)

// Private keys in PEM and OpenSSH form: -----BEGIN <kind> PRIVATE KEY-----, a line end, a body. PGP has BLOCK behind it
// (RFC 9580, 6.2), SSH.com's form has four dashes and blanks (RFC 4716).
const (
	// Programs and manuals hold the header alone, or with a few characters and dots. The smallest real
	// body, an Ed25519 key in PKCS#8, has 64 characters.
	minKeyBody     = 48
	minKeyAlphabet = 12 // a placeholder repeats few characters
	// Without a line end a body has to look like one: 64 random characters have about 40 different ones.
	minOneLineAlphabet = 20
	// A fingerprint covers the start of a body: far enough to tell keys apart (OpenSSH's begin with 80
	// characters that are the same for all), not so far that a file in two extents has another on the
	// bare device.
	fingerprintDigits = 192
)

// textAnchors are the fixed texts of keys and manifests.
func textAnchors() []anchor {
	return []anchor{
		{"private-key", headerPattern(), judgePrivateKey},
		{"private-key", urlHeaderPattern(), judgePrivateKey},
		{"token", secretManifestPattern(), judgeSecretManifest},
		{"token", exactly(`"kind": "Secret"`), judgeSecretManifest},
		{"token", exactly(`"kind":"Secret"`), judgeSecretManifest},
	}
}

// judgePrivateKey is called at "PRIVATE KEY".
func judgePrivateKey(window []byte, at int) (detail, fingerprint string, found bool) {
	kind, ok := keyKind(string(plain(window[max(0, at-60):at])))
	if !ok {
		return "", "", false
	}
	rest := window[at:min(len(window), at+LookAhead)]
	dashes := bytes.IndexByte(rest[:min(len(rest), 40)], '-')
	if dashes < 0 || !is(rest[dashes-1], textByte) {
		return "", "", false
	}
	body, separated := skipLineEnd(bytes.TrimLeft(rest[dashes:], "-"))
	digits := base64Digits(skipPEMHeaders(body))
	least := minKeyAlphabet
	if !separated {
		least = minOneLineAlphabet
	}
	if len(digits) < minKeyBody || alphabet(digits) < least {
		digits = bodyBehindHeaders(body)
	}
	if digits == nil {
		return "", "", false
	}
	return strings.TrimSpace(kind+"PRIVATE KEY") + " with a body", keyFingerprint(digits), true
}

// headerPattern is PRIVATE KEY with dashes, BLOCK or a blank behind it, and a blank or a form's plus sign within.
func headerPattern() (pattern [stride]string) {
	copy(pattern[:], strings.Split("PRIVATE KEY", ""))
	pattern[7] = " +"
	copy(pattern[11:], []string{"- +", "-B", "-L", "-O"})
	return pattern
}

// urlHeaderPattern is the same in a URL.
func urlHeaderPattern() (pattern [stride]string) {
	copy(pattern[:], strings.Split("PRIVATE%20KEY", ""))
	pattern[13], pattern[14] = "-%", "-2"
	return pattern
}

func keyFingerprint(digits []byte) string {
	return fingerprint(digits[:min(len(digits), fingerprintDigits)])
}

// keyKind is what stands between BEGIN and PRIVATE KEY, with a blank behind it where there is something.
func keyKind(before string) (kind string, ok bool) {
	before = strings.ReplaceAll(before, "+", " ") // as in a form that was sent
	start := strings.LastIndex(before, "---")
	if start < 0 {
		return "", false
	}
	kind, ok = strings.CutPrefix(strings.TrimLeft(before[start+3:], " "), "BEGIN ")
	return kind, ok && strings.Trim(kind, "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 ") == ""
}

// skipLineEnd drops white space, as such or escaped, and the end of a string literal that is joined to the next.
func skipLineEnd(text []byte) (rest []byte, skipped bool) {
	rest = text
	lineStart := false
	for len(rest) > 0 {
		value, length := unescape(rest)
		c := rest[0]
		switch {
		case lineStart && isCommentMark(c):
			length = 1
		case c == ' ' || c == '\t' || c == '\r' || c == '\n' || value == ' ':
			length = max(length, 1)
		case c == '"' || c == '\'':
			length = joint(rest)
		default:
			length = 0
		}
		if length == 0 {
			break
		}
		lineStart = lineStart && c == ' ' || c == '\n' || value == ' '
		rest, skipped = rest[length:], true
	}
	return rest, skipped
}

// skipPEMHeaders drops headers: Proc-Type and DEK-Info of an encrypted key, Version and Comment of PGP's. Their lines end
// as the text's do, by a line end or by one that is written.
func skipPEMHeaders(text []byte) []byte {
	for range 6 {
		end, length := 0, 0
		for end < min(len(text), 200) {
			if value, escape := unescape(text[end:]); escape > 0 && value == ' ' {
				length = escape
				break
			}
			if text[end] == '\n' {
				length = 1
				break
			}
			end++
		}
		if length == 0 || !bytes.Contains(text[:end], []byte(": ")) {
			break
		}
		text, _ = skipLineEnd(text[end+length:])
	}
	return text
}

// bodyBehindHeaders looks for a line of a body where headers are not on lines of their own; nil is none.
func bodyBehindHeaders(text []byte) []byte {
	text = plain(text[:min(len(text), 1200)])
	text, _, _ = bytes.Cut(text, []byte("-----"))
	text = text[:min(len(text), 600)]
	if !bytes.Contains(text, []byte(":")) {
		return nil
	}
	for _, part := range bytes.FieldsFunc(text, func(r rune) bool { return r > '~' || !isBase64(byte(r)) }) {
		if len(part) >= minKeyBody && alphabet(part) >= minOneLineAlphabet {
			return part
		}
	}
	return nil
}

// isPuTTY is called at the first line of PuTTY's format: the private part is behind "Private-Lines:" (PuTTY's manual,
// appendix C).
func isPuTTY(window []byte, at, _ int) bool {
	text := window[at:min(len(window), at+LookAhead)]
	_, body, found := bytes.Cut(text, []byte("Private-Lines: "))
	if !found {
		return false
	}
	count := 0
	for count < len(body) && body[count] >= '0' && body[count] <= '9' {
		count++
	}
	body, _ = skipLineEnd(body[count:])
	digits := base64Digits(body)
	return count > 0 && len(digits) >= 40 && alphabet(digits) >= minKeyAlphabet
}

// isSSH1: behind the magic of SSH 1's keys are a line end, a zero, a cipher and four zeros.
func isSSH1(head []byte) bool {
	rest, ok := bytes.CutPrefix(head, []byte("SSH PRIVATE KEY FILE FORMAT 1.1\n\x00"))
	return ok && len(rest) >= 64 && rest[0] <= 6 && bytes.Equal(rest[1:5], make([]byte, 4)) && alphabet(rest[5:64]) >= minKeyAlphabet
}

// secretManifestPattern is "kind: Secret", a line end, and the start of one of a manifest's other keys.
func secretManifestPattern() (pattern [stride]string) {
	copy(pattern[:], strings.Split("kind: Secret\n", ""))
	pattern[13], pattern[14] = "mdst", "ety"
	return pattern
}

// judgeSecretManifest is called at a Kubernetes secret's kind, and looks for its data before and behind.
func judgeSecretManifest(window []byte, at int) (detail, fingerprint string, found bool) {
	text := window[max(0, at-LookBehind):min(len(window), at+2*LookBehind)]
	for _, name := range []string{"data:", `"data":`, "stringData:", `"stringData":`} {
		_, data, ok := bytes.Cut(text, []byte(name))
		for range 8 {
			if !ok {
				break
			}
			var line []byte
			line, data, ok = bytes.Cut(bytes.TrimLeft(data, " \t\r\n{"), []byte("\n"))
			_, value, named := bytes.Cut(line, []byte(":"))
			value = bytes.Trim(value, " \t\r\"',}")
			if named && len(value) >= 10 && len(base64Digits(value)) == len(value) && entropy(value) >= 2.6 && !isPlaceholder(value) {
				return "Kubernetes secret with data", keyFingerprint(value), true
			}
		}
	}
	return "", "", false
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
