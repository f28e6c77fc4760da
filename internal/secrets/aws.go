package secrets

import (
	"bytes"
	"strings"
)

const (
	secretLength   = 40
	secretAlphabet = 18 // a random secret has about 30 different characters
	secretDistance = 512
)

// hasSecretNear is called at a key id. One alone is no secret, and four letters are found in every binary: it takes a
// whole id and, near it, something that can only be its secret. A secret that its name gives away is found without.
func hasSecretNear(window []byte, at, length int) bool {
	end := at + length
	if at > 0 && window[at-1] != '=' && isBase64(window[at-1]) && !escaped(window, at) || end < len(window) && isBase64(window[end]) && window[end] != '=' {
		return false
	}
	if bytes.HasSuffix(window[at:end], []byte("EXAMPLE")) { // AWS's documentation
		return false
	}
	return holdsSecret(plain(window[max(0, at-secretDistance):at])) ||
		holdsSecret(plain(window[end:min(len(window), end+secretDistance)]))
}

// hasKeyIDNear tells whether a secret at that place is reported with its id.
func hasKeyIDNear(window []byte, at int) bool {
	first, last := max(0, at-secretDistance), min(len(window), at+secretLength+secretDistance)
	for i := range tokens {
		if tokens[i].rule() != "aws-credentials" || tokens[i].check == nil {
			continue
		}
		for place := first; ; place++ {
			next := bytes.Index(window[place:last], []byte(tokens[i].prefix))
			if next < 0 {
				break
			}
			place += next
			if _, found := tokens[i].judge(window, place); found {
				return true
			}
		}
	}
	return false
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
		if isSecret(run) {
			return true
		}
		start += length + 1
	}
	return false
}

func isSecret(text []byte) bool {
	return len(text) == secretLength && looksRandom(text, secretAlphabet) && !bytes.HasSuffix(text, []byte("EXAMPLEKEY")) &&
		len(bytes.Trim(text, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/")) == 0
}

func looksRandom(text []byte, least int) bool {
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
	return upper > 1 && lower > 1 && digit > 0 && alphabet(text) >= least
}

// namesAWSSecret tells whether a value's name is that of a secret key, as AWS's tools write it.
func namesAWSSecret(name string) bool {
	squeezed := squeeze(name)
	return strings.HasSuffix(squeezed, "secretaccesskey") || strings.HasSuffix(squeezed, "awssecretkey") || strings.HasSuffix(squeezed, "awssecret") ||
		strings.HasSuffix(squeezed, "secretkey")
}
