// Package secretstest makes secrets for tests while they run: none is in the repository.
package secretstest

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"regexp/syntax"
	"strings"
	"testing"
)

// An access key id and a secret in the form of real ones, and a token, put together so that scanners of
// repositories do not take them for leaked.
const (
	KeyID       = "AKIA" + "Q5ZW3NK7XUPLM2TB"
	Secret      = "q9Xo3v+Lr7/" + "Tn2KdPz8WbYcE5mJ4hUgAa1SfQeRi"
	GitHubToken = "ghp_" + "Q7wErT9yUi3OpAs5DfGh" + "J1kLzX8cVbN2m4Qe"
)

// Ed25519Key is a new key in PKCS#8 and PEM.
func Ed25519Key(tb testing.TB) string {
	tb.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	return PKCS8(tb, key)
}

// PKCS8 is a key in PKCS#8 and PEM.
func PKCS8(tb testing.TB, key any) string {
	tb.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		tb.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
}

// RSAKey is a new key in PKCS#1 and PEM.
func RSAKey(tb testing.TB) string {
	tb.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		tb.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)}))
}

// Random makes a text of a form, which is in regexp's syntax.
func Random(tb testing.TB, form string) string {
	tb.Helper()
	parsed, err := syntax.Parse(form, syntax.Perl)
	if err != nil {
		tb.Fatal(err)
	}
	var text strings.Builder
	write(tb, parsed, &text)
	return text.String()
}

func write(tb testing.TB, form *syntax.Regexp, out *strings.Builder) {
	switch form.Op {
	case syntax.OpEmptyMatch, syntax.OpBeginText, syntax.OpEndText:
	case syntax.OpLiteral:
		out.WriteString(string(form.Rune))
	case syntax.OpCharClass:
		out.WriteRune(pick(tb, form.Rune))
	case syntax.OpConcat, syntax.OpCapture:
		for _, part := range form.Sub {
			write(tb, part, out)
		}
	case syntax.OpAlternate:
		write(tb, form.Sub[below(tb, len(form.Sub))], out)
	case syntax.OpQuest:
		repeat(tb, form.Sub[0], 0, 1, out)
	case syntax.OpPlus:
		repeat(tb, form.Sub[0], 12, 20, out)
	case syntax.OpStar:
		repeat(tb, form.Sub[0], 0, 20, out)
	case syntax.OpRepeat:
		most := form.Max
		if most < 0 {
			most = form.Min + 20
		}
		repeat(tb, form.Sub[0], form.Min, most, out)
	default:
		tb.Fatalf("no text is made of %v in %v", form.Op, form)
	}
}

func repeat(tb testing.TB, form *syntax.Regexp, least, most int, out *strings.Builder) {
	for range least + below(tb, most-least+1) {
		write(tb, form, out)
	}
}

// pick takes one of the runes in a class of ASCII, which is given as pairs of a first and a last one.
func pick(tb testing.TB, pairs []rune) rune {
	var runes []rune
	for i := 0; i < len(pairs); i += 2 {
		for r := max(pairs[i], '!'); r <= min(pairs[i+1], '~'); r++ {
			runes = append(runes, r)
		}
	}
	return runes[below(tb, len(runes))]
}

func below(tb testing.TB, limit int) int {
	n, err := rand.Int(rand.Reader, big.NewInt(int64(limit)))
	if err != nil {
		tb.Fatal(err)
	}
	return int(n.Int64())
}
