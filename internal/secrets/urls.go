package secrets

import (
	"bytes"
	"regexp"
	"strings"
)

var (
	telegramToken = regexp.MustCompile(`\A:A[0-9A-Za-z_-]{34}(?:[^0-9A-Za-z_-]|\z)`)
	azureSecret   = regexp.MustCompile(`\A[0-9A-Za-z_~.]{3}\dQ~[0-9A-Za-z_~.-]{31,34}(?:[^0-9A-Za-z_~.-]|\z)`)
	discordBot    = regexp.MustCompile(`\A[MNO][0-9A-Za-z_-]{23,25}\.[0-9A-Za-z_-]{6}\.[0-9A-Za-z_-]{27,38}(?:[^0-9A-Za-z_-]|\z)`)
	maxMind       = regexp.MustCompile(`\A[0-9A-Za-z]{6}_[0-9A-Za-z]{29}_mmk(?:[^0-9A-Za-z_]|\z)`)
)

// judgeColon is called at a colon in a run: of a URL, or within a Telegram bot's token (gitleaks telegram-bot-api-token).
func (m *Matcher) judgeColon(window []byte, at int, report func(Hit)) {
	if bytes.HasPrefix(window[at:], []byte("://")) {
		if password, ok := URLPassword(window, at, true); ok && !m.isToken(password) {
			report(Hit{"url-password", "URL with a password", fingerprint(password), int64(at)})
		}
		return
	}
	digits := 0
	for at > digits && digits < 17 && window[at-1-digits] >= '0' && window[at-1-digits] <= '9' {
		digits++
	}
	if digits >= 5 && digits <= 16 && telegramToken.Match(window[at:min(len(window), at+40)]) {
		report(Hit{"token", "Telegram bot", fingerprint(window[at : at+36]), int64(at - digits)})
	}
}

// isToken: a token is reported as what it is, in a URL too.
func (m *Matcher) isToken(text []byte) bool {
	t, _ := m.tokenAt(text, 0)
	return t != nil
}

// judgeTilde is called at a tilde: the sixth character of an Azure AD client secret (gitleaks azure-ad-client-secret).
func judgeTilde(window []byte, at int, report func(Hit)) {
	if at < 5 || window[at-1] != 'Q' || at >= 6 && is(window[at-6], wordByte) {
		return
	}
	text := window[at-5 : min(len(window), at+40)]
	if place := azureSecret.FindIndex(text); place != nil && entropy(text[:place[1]]) >= 3 && !isPlaceholder(text[:place[1]]) {
		report(Hit{"token", "Azure AD client secret", fingerprint(text[:38]), int64(at - 5)})
	}
}

// judgeShape is called at the start of a word, for secrets without a prefix whose marks are within: a Discord bot's token
// (detect-secrets discord) and a MaxMind licence key (gitleaks maxmind-license-key).
func judgeShape(window []byte, at int, report func(Hit)) {
	if at+40 > len(window) {
		return
	}
	switch {
	case window[at+6] == '_' && bytes.Equal(window[at+36:at+40], []byte("_mmk")):
		if maxMind.Match(window[at:min(len(window), at+41)]) && !isPlaceholder(window[at:at+40]) {
			report(Hit{"token", "MaxMind licence key", fingerprint(window[at : at+40]), int64(at)})
		}
	case (window[at] == 'M' || window[at] == 'N' || window[at] == 'O') && bytes.IndexByte(window[at+24:at+27], '.') >= 0:
		text := window[at:min(len(window), at+80)]
		if place := discordBot.FindIndex(text); place != nil && looksRandom(text[:place[1]], 20) && !isPlaceholder(text[:place[1]]) {
			report(Hit{"token", "Discord bot", fingerprint(text[:place[1]-1]), int64(at)})
		}
	}
}

const (
	maxURL = 400 // what is looked at of a URL
	minURL = 12  // ://u:pass@ho; tokens and values are longer
)

// Names and passwords that documentation has in the place of real ones.
var standIns = map[string]bool{}

func init() {
	for _, text := range strings.Fields(`pass password passwd passw pwd pw psw secret token key user username name login test testing guest foo bar baz
		example changeme change-me mypass mypassword my-password mysecret pass1 pass123 password1 password123 p@ssw0rd p4ssw0rd s3cret s3cr3t hunter2 1234
		12345 123456 userpass user_password somepassword some_password letmein joe postgres root admin proxypass proxypassword nopass anonymous 123 pass2
		password2 x y abc p u`) {
		standIns[text] = true
	}
}

var standInHost = regexp.MustCompile(`(?i)\A(?:.*\.)?(?:example|test|invalid|localhost|localdomain)(?:\.(?:com|org|net|edu))?\z|\A(?:127\.|0\.0\.0\.0|host|hostname|server|domain|proxy|site|foo|bar|www\.python\.org|\[)|\.\.\.|\A(?:my|some|your)`)

// URLPassword is called at "://", and returns the password before the host. A strict caller, who reads any bytes, takes
// what could be documentation's for that: hosts of RFC 2606, and words.
func URLPassword(window []byte, at int, strict bool) (password []byte, found bool) {
	if at == 0 || !is(window[at-1], wordByte) {
		return nil, false
	}
	rest := window[at+3 : min(len(window), at+3+maxURL)]
	if end := bytes.IndexFunc(rest, func(r rune) bool { return r <= ' ' || r > '~' || strings.ContainsRune("\"'`<>{}/\\", r) }); end >= 0 {
		rest = rest[:end]
	}
	authority := bytes.LastIndexByte(rest, '@')
	if authority < 0 {
		return nil, false
	}
	host := rest[authority+1:]
	host = host[:len(host)-len(bytes.TrimLeft(host, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789.-[]"))]
	_, password, ok := bytes.Cut(rest[:authority], []byte(":"))
	if !ok || len(password) < 3 || len(host) == 0 || bytes.ContainsAny(password[:1], "$%[<{*(&#") || bytes.ContainsAny(password, "$") && bytes.ContainsAny(password, "({") {
		return nil, false
	}
	lower := strings.ToLower(string(password))
	if alphabet(password) < 3 || bytes.Contains(password, []byte("%s")) || strings.HasPrefix(lower, "xxx") {
		return nil, false
	}
	if strict && (standIns[lower] || isPlaceholder(password) || standInHost.Match(host) || len(password) < 6 || isLetters(password) || strings.Contains(lower, "passw") && len(password) < 12) {
		return nil, false
	}
	return password, true
}

// HoldsURLPassword looks for a URL with a password in a file that tools keep such URLs in.
func HoldsURLPassword(content []byte) bool {
	for at := 0; ; {
		next := bytes.Index(content[at:], []byte("://"))
		if next < 0 {
			return false
		}
		if _, found := URLPassword(content, at+next, false); found {
			return true
		}
		at += next + 3
	}
}

// judgeCurl is called at the start of a run: curl's -u or --user has a name and a password (gitleaks curl-auth-user).
func judgeCurl(window []byte, at, end int, report func(Hit)) {
	if at < 4 || strings.IndexByte(" \"'=", window[at-1]) < 0 || window[at-2]|0x20 != 'u' && window[at-2] != 'r' && window[at-3] != 'u' && window[at-3] != 'r' {
		return
	}
	option := bytes.TrimRight(window[max(0, at-10):at], "\"' =")
	if !bytes.HasSuffix(option, []byte(" -u")) && !bytes.HasSuffix(option, []byte(" --user")) || !bytes.Contains(window[max(0, at-300):at], []byte("curl")) {
		return
	}
	name, password, ok := bytes.Cut(window[at:end], []byte(":"))
	if !ok || len(name) < 2 || len(password) < 6 || bytes.ContainsAny(password[:1], "$%*") || isLetters(password) || standIns[strings.ToLower(string(password))] || isPlaceholder(password) {
		return
	}
	report(Hit{"named-secret", "user and password of curl", fingerprint(password), int64(at)})
}
