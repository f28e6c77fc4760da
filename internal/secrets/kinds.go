package secrets

import (
	"maps"
	"slices"
	"strings"
)

// Kind is what a table for people says of secrets that one service or format has.
type Kind struct {
	Name, Mark, Source string
}

// otherKinds are found by code of their own.
var otherKinds = []Kind{
	{"Private key in PEM", "`PRIVATE KEY`, and a body on lines or on one, escaped, in a string, in base64, encrypted too", "gitleaks private-key; detect-secrets private_key; RFC 7468, RFC 4716, PROTOCOL.key of OpenSSH"},
	{"Private key of PGP", "`PRIVATE KEY BLOCK`; the packet of a secret key where a file begins", "gitleaks private-key; RFC 9580"},
	{"Private key in DER", "its structure where a file begins: PKCS#1, PKCS#8, also encrypted, SEC 1, DSA", "RFC 5958, RFC 8017, RFC 5915, RFC 8410"},
	{"Private key of SSH 1, and of OpenSSH in binary", "the texts that they begin with, where a file begins", "PROTOCOL.key of OpenSSH"},
	{"Key store", "PKCS#12 and Java's with a key, KeePass, Kerberos key tables: their structure where a file begins", "gitleaks pkcs12-file; RFC 7292"},
	{"JSON web key", "`d` with a value, and `kty` near it, in JSON, in JSON within a string, and in YAML", "RFC 7518; Docker's key.json"},
	{"WireGuard key", "32 bytes in base64 with the name `PrivateKey` or `PresharedKey`", "wg(8)"},
	{"AWS secret key", "40 characters whose name says so, however far from the id", "gitleaks aws-access-token; detect-secrets aws"},
	{"Kubernetes secret", "`kind: Secret` with data", "gitleaks kubernetes-secret-yaml"},
	{"URL with a password", "`scheme://user:password@host`, but for documentation's hosts and words", "detect-secrets basic_auth; gitleaks sidekiq-sensitive-url"},
	{"curl's user and header", "`curl -u name:password`; `Authorization:` with a token", "gitleaks curl-auth-user, curl-auth-header"},
	{"Azure AD client secret", "`Q~` behind four characters", "gitleaks azure-ad-client-secret"},
	{"Telegram bot", "a number, `:A` and 34 characters", "gitleaks telegram-bot-api-token; detect-secrets telegram_token"},
	{"Discord bot", "three parts of 24, 6 and 27 characters or more", "detect-secrets discord"},
	{"Mailchimp", "`-us` and a number behind 32 hexadecimal digits", "gitleaks mailchimp-api-key; detect-secrets mailchimp"},
	{"MaxMind licence key", "`_mmk` at its end", "gitleaks maxmind-license-key"},
	{"Any secret by its name", "a value of 15 characters or more that looks generated, with a name that ends in password, secret, token, key or the like", "gitleaks generic-api-key, database-password, hashicorp-tf-password, nuget-config-password; detect-secrets keyword, high_entropy_strings"},
}

// Kinds returns all kinds, sorted by name within each group: by form, by code, by name.
func Kinds() []Kind {
	marks, sources := map[string][]string{}, map[string][]string{}
	for _, t := range tokens {
		marks[t.kind] = appendNew(marks[t.kind], "`"+t.prefix+"`")
		sources[t.kind] = appendNew(sources[t.kind], t.source)
	}
	kinds := slices.Clone(otherKinds)
	for _, name := range slices.Sorted(maps.Keys(marks)) {
		kinds = append(kinds, Kind{name, strings.Join(marks[name], ", "), strings.Join(sources[name], "; ")})
	}
	for _, n := range namedSecrets {
		kinds = append(kinds, Kind{n.kind + ", by name", "a name with " + strings.ReplaceAll(n.words, " ", " or ") + ", and its value's form", n.source})
	}
	return kinds
}

func appendNew(list []string, text string) []string {
	if slices.Contains(list, text) {
		return list
	}
	return append(list, text)
}
