package secrets

import (
	"bytes"
	"regexp"
	"slices"
	"strings"
	"sync"
)

// named is a secret that has no form of its own: its name says what it is, and its value has the form of that. Names are
// compared without case, blanks and marks.
type named struct {
	kind, words, form, source string
	compiled                  func() *regexp.Regexp
}

// has tells whether a name contains one of the words.
func (n *named) has(squeezed string) bool {
	for rest := n.words; rest != ""; {
		var w string
		w, rest, _ = strings.Cut(rest, " ")
		if strings.Contains(squeezed, w) {
			return true
		}
	}
	return false
}

// Forms of values.
const (
	hex32  = hexed + `{32}`
	hex40  = hexed + `{40}`
	hex64  = hexed + `{64}`
	low32  = alnum + `{32}`
	word32 = `[0-9A-Za-z=_-]{32}`
	word64 = `[0-9A-Za-z=_-]{64}`
	word40 = `[0-9A-Za-z=_-]{40}`
)

// The rules that gitleaks has with a service's name beside the value; words are separated by blanks.
var namedSecrets = compileNamed([]named{
	{"Adafruit", "adafruit", word32, "gitleaks adafruit-api-key", nil},
	{"Adobe", "adobe", hex32, "gitleaks adobe-client-id", nil},
	{"Airtable", "airtable", alnum + `{17}|pat` + alnum + `{14}\.[0-9a-f]{64}`, "gitleaks airtable-api-key", nil},
	{"Algolia", "algolia", low32, "gitleaks algolia-api-key", nil},
	{"Alibaba Cloud", "alibaba aliyun alicloud", alnum + `{30}`, "gitleaks alibaba-secret-key", nil},
	{"Asana", "asana", `\d{16}|` + low32, "gitleaks asana-client-id, asana-client-secret", nil},
	{"Atlassian", "atlassian confluence jira", alnum + `{24}`, "gitleaks atlassian-api-token", nil},
	{"Beamer", "beamer", `b_[0-9A-Za-z=_-]{44}`, "gitleaks beamer-api-token", nil},
	{"Bitbucket", "bitbucket", low32 + `|` + word64, "gitleaks bitbucket-client-id, bitbucket-client-secret", nil},
	{"Bittrex", "bittrex", low32, "gitleaks bittrex-access-key, bittrex-secret-key", nil},
	{"Cisco Meraki", "meraki", hex40, "gitleaks cisco-meraki-api-key", nil},
	{"Cloudant", "cloudant", hex64 + `|[a-z]{24}`, "detect-secrets cloudant", nil},
	{"Cloudflare", "cloudflare", `[0-9A-Za-z_-]{40}|[a-f0-9]{37}`, "gitleaks cloudflare-api-key, cloudflare-global-api-key", nil},
	{"Codecov", "codecov", low32 + `|` + uuid, "gitleaks codecov-access-token", nil},
	{"Cohere", "cohere coapikey", alnum + `{40}`, "gitleaks cohere-api-token", nil},
	{"Coinbase", "coinbase", word64, "gitleaks coinbase-access-token", nil},
	{"Confluent", "confluent", alnum + `{16}|` + alnum + `{64}`, "gitleaks confluent-access-token, confluent-secret-key", nil},
	{"Contentful", "contentful", `[0-9A-Za-z=_-]{43}`, "gitleaks contentful-delivery-api-token", nil},
	{"Datadog", "datadog ddapikey ddappkey", alnum + `{40}|` + hex32, "gitleaks datadog-access-token", nil},
	{"Discord", "discord", hex64 + `|\d{18}|` + word32, "gitleaks discord-api-token, discord-client-id, discord-client-secret", nil},
	{"Drone CI", "droneci dronetoken", low32, "gitleaks droneci-access-token", nil},
	{"Dropbox", "dropbox", alnum + `{15}|` + alnum + `{11}A{10}[0-9A-Za-z=_-]{43}`, "gitleaks dropbox-api-token, dropbox-long-lived-api-token", nil},
	{"Etsy", "etsy", alnum + `{24}`, "gitleaks etsy-access-token", nil},
	{"Facebook", "facebook", hex32 + `|\d{15,16}(?:\x7c|%7C)[0-9a-zA-Z_-]{27,40}`, "gitleaks facebook-secret, facebook-access-token", nil},
	{"Fastly", "fastly", word32, "gitleaks fastly-api-token", nil},
	{"Finicity", "finicity", hex32 + `|` + alnum + `{20}`, "gitleaks finicity-api-token, finicity-client-secret", nil},
	{"Finnhub", "finnhub", alnum + `{20}`, "gitleaks finnhub-access-token", nil},
	{"Flickr", "flickr", low32, "gitleaks flickr-access-token", nil},
	{"Freemius", "secretkey", `sk_[0-9A-Za-z#!@^~_=+.-]{29}`, "gitleaks freemius-secret-key", nil},
	{"FreshBooks", "freshbooks", alnum + `{64}`, "gitleaks freshbooks-access-token", nil},
	{"Gitter", "gitter", word40, "gitleaks gitter-access-token", nil},
	{"GoCardless", "gocardless", `live_[0-9A-Za-z=_-]{40}`, "gitleaks gocardless-api-token", nil},
	{"Heroku", "heroku", uuidAny, "gitleaks heroku-api-key", nil},
	{"HubSpot", "hubspot", uuidAny, "gitleaks hubspot-api-key", nil},
	{"IBM Cloud", "ibmcloud ibmiam iamapikey bluemix softlayer", `[0-9A-Za-z_-]{44}|` + hex64, "detect-secrets ibm_cloud_iam, softlayer", nil},
	{"IBM COS", "hmac cossecret", hexed + `{48}`, "detect-secrets ibm_cos_hmac", nil},
	{"Intercom", "intercom", `[0-9A-Za-z=_-]{60}`, "gitleaks intercom-api-key", nil},
	{"JFrog", "jfrog artifactory bintray xray", alnum + `{73}|` + alnum + `{64}`, "gitleaks jfrog-api-key, jfrog-identity-token", nil},
	{"Kraken", "kraken", `[0-9A-Za-z/=_+-]{80,90}`, "gitleaks kraken-access-token", nil},
	{"KuCoin", "kucoin", hexed + `{24}|` + uuidAny, "gitleaks kucoin-access-token, kucoin-secret-key", nil},
	{"LaunchDarkly", "launchdarkly", word40, "gitleaks launchdarkly-access-token", nil},
	{"Linear", "linear", hex32, "gitleaks linear-client-secret", nil},
	{"LinkedIn", "linkedin", alnum + `{16}`, "gitleaks linkedin-client-secret, linkedin-client-id (of 14 characters: too short to tell)", nil},
	{"Lob", "lob", `(?:live|test)_(?:pub_)?[a-f0-9]{31,35}`, "gitleaks lob-api-key, lob-pub-api-key", nil},
	{"Mailgun", "mailgun", `[0-9a-h]{32}-[0-9a-h]{8}-[0-9a-h]{8}`, "gitleaks mailgun-signing-key", nil},
	{"Mattermost", "mattermost", alnum + `{26}`, "gitleaks mattermost-access-token", nil},
	{"MessageBird", "messagebird", alnum + `{25}|` + uuidAny, "gitleaks messagebird-api-token, messagebird-client-id", nil},
	{"Netlify", "netlify", `[0-9A-Za-z=_-]{40,46}`, "gitleaks netlify-access-token", nil},
	{"New Relic", "newrelic", alnum + `{64}|` + alnum + `{40}`, "gitleaks new-relic-user-api-id", nil},
	{"New York Times", "nytimes newyorktimes", word32, "gitleaks nytimes-access-token", nil},
	{"Okta", "okta", `00[\w=-]{40}`, "gitleaks okta-access-token", nil},
	{"Plaid", "plaid", alnum + `{24}|` + alnum + `{30}`, "gitleaks plaid-client-id, plaid-secret-key", nil},
	{"Private AI", "privateai", low32, "gitleaks privateai-api-token", nil},
	{"RapidAPI", "rapidapi", `[0-9A-Za-z_-]{50}`, "gitleaks rapidapi-access-token", nil},
	{"Sendbird", "sendbird", hex40 + `|` + uuidAny, "gitleaks sendbird-access-token, sendbird-access-id", nil},
	{"Sentry", "sentry", hex64, "gitleaks sentry-access-token", nil},
	{"Sidekiq", "bundleenterprisecontribsyscom bundlegemscontribsyscom", `[a-f0-9]{8}:[a-f0-9]{8}`, "gitleaks sidekiq-secret", nil},
	{"Snyk", "snyk", uuidAny, "gitleaks snyk-api-token", nil},
	{"SonarQube", "sonarlogin sonartoken", word40, "gitleaks sonar-api-token", nil},
	{"Sourcegraph", "sourcegraph", hex40, "gitleaks sourcegraph-access-token", nil},
	{"Squarespace", "squarespace", uuidAny, "gitleaks squarespace-access-token", nil},
	{"Sumo Logic", "sumologic sumo", alnum + `{64}|su` + alnum + `{12}`, "gitleaks sumologic-access-token, sumologic-access-id (of 14 characters: too short to tell)", nil},
	{"Travis CI", "travis", alnum + `{22}`, "gitleaks travisci-access-token", nil},
	{"Twitch", "twitch", alnum + `{30}`, "gitleaks twitch-api-token", nil},
	{"Twitter", "twitter", alnum + `{45}|` + alnum + `{25}|` + alnum + `{50}|\d{15,25}-[0-9A-Za-z]{20,40}|A{22}[0-9A-Za-z=+/]{80,100}`, "gitleaks twitter-access-secret, twitter-access-token, twitter-api-key, twitter-api-secret, twitter-bearer-token", nil},
	{"Yandex", "yandex", `YC[0-9A-Za-z_-]{38}`, "gitleaks yandex-aws-access-token", nil},
	{"Zendesk", "zendesk", alnum + `{40}`, "gitleaks zendesk-secret-key", nil},
})

const uuidAny = hexed + `{8}-` + hexed + `{4}-` + hexed + `{4}-` + hexed + `{4}-` + hexed + `{12}`

func compileNamed(table []named) []named {
	for i := range table {
		form := `\A(?:` + table[i].form + `)\z`
		table[i].compiled = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(form) })
	}
	return table
}

const (
	minValue = stride
	maxValue = 400
	maxName  = 64
)

// judgeValue is called where a value may begin: at the start of a run, or behind = or : in one.
func (m *Matcher) judgeValue(window []byte, at int, report func(Hit)) {
	name, ok := nameOf(window, at)
	if !ok || !mentionsSecret(name) {
		return
	}
	end := at
	for end < len(window) && end-at < maxValue && is(window[end], runByte) {
		end++
	}
	raw := window[at:end]
	if len(raw) < minValue || !varied(raw) {
		return
	}
	value := cutWritten(raw)
	if len(value) < minValue || isPlaceholder(value) {
		return
	}
	if t, _ := m.tokenAt(window, at); t != nil { // reported as what it is
		return
	}
	rule, detail := judgeNamed(name, value, window, at)
	if rule != "" {
		report(Hit{rule, detail, fingerprint(value), int64(at)})
	}
}

// nameStarts are the first two letters of all words that judgeNamed looks for: most names have none of the words, and
// this tells so in one pass.
var nameStarts = func() map[[2]byte][]string {
	starts := map[[2]byte][]string{}
	add := func(w string) { starts[[2]byte{w[0], w[1]}] = append(starts[[2]byte{w[0], w[1]}], w) }
	for i := range namedSecrets {
		for _, w := range strings.Fields(namedSecrets[i].words) {
			add(w)
		}
	}
	for _, w := range slices.Concat(secretWords, []string{"privatekey", "presharedkey", "secretaccesskey", "awssecret"}) {
		add(w)
	}
	return starts
}()

var nameKeys = func() (keys [1 << 14]bool) {
	for start := range nameStarts {
		keys[startKey(start[0], start[1])] = true
	}
	return keys
}()

// mentionsSecret tells whether judgeNamed may know the name.
func mentionsSecret(name string) bool {
	var letters [maxName]byte
	n := 0
	for i := 0; i < len(name) && n < maxName; i++ {
		if c := name[i]; c >= 'A' && c <= 'Z' {
			letters[n], n = c|0x20, n+1
		} else if is(c, wordByte) && c != '_' {
			letters[n], n = c, n+1
		}
	}
	if n > 0 && letters[n-1] == 'd' && (n == 1 || !is(name[max(0, len(name)-2)], wordByte)) {
		return true // a JSON web key's
	}
	for i := 0; i+1 < n; i++ {
		if !nameKeys[startKey(letters[i], letters[i+1])] {
			continue
		}
		for _, w := range nameStarts[[2]byte{letters[i], letters[i+1]}] {
			if strings.HasPrefix(string(letters[i:n]), w) {
				return true
			}
		}
	}
	return false
}

func hasDigit(text []byte) bool {
	for _, c := range text {
		if c >= '0' && c <= '9' {
			return true
		}
	}
	return false
}

// cutWritten undoes escapes of a value and ends it where one stands for white space, or where its statement ends.
func cutWritten(raw []byte) []byte {
	value := make([]byte, 0, len(raw))
	for len(raw) > 0 {
		c, length := unescape(raw)
		if length == 0 {
			c, length = raw[0], 1
		}
		if c == ' ' || c == '&' {
			break
		}
		value = append(value, c)
		raw = raw[length:]
	}
	return bytes.TrimRight(value, `\`)
}

// nameOf returns the name that a value at that place is given to: before it stand =, :, =>, a comma between literals, or a
// tag's end, with blanks and quotes about it.
func nameOf(window []byte, at int) (string, bool) {
	skip := func(i int, set string) int {
		for n := 0; i > 0 && n < 12 && strings.IndexByte(set, window[i-1]) >= 0; n++ {
			i--
		}
		return i
	}
	if at == 0 || !is(window[at-1], giveByte) {
		return "", false
	}
	if at > 1 && window[at-1] == ' ' && !is(window[at-2], giveByte) && strings.IndexByte("rcn", window[at-2]) < 0 {
		return "", false // words; but r, c and n end the schemes below
	}
	i := skip(at, " \t\"'`\\|")
	if i > 6 && i < at && is(window[i-1], wordByte) { // of an Authorization header
		for _, scheme := range []string{"Bearer", "bearer", "Basic", "basic", "Token", "token"} {
			if bytes.HasSuffix(window[:i], []byte(scheme)) {
				i = skip(i-len(scheme), " \t\"'`\\")
				break
			}
		}
	}
	if i == 0 || strings.IndexByte("=:>,", window[i-1]) < 0 {
		return "", false
	}
	if window[i-1] == ',' && at == i {
		return "", false // a list
	}
	i = skip(i, "=:>,")
	i = skip(i, " \t\"'`\\?])(")
	start := i
	for start > 0 && i-start < maxName && isName(window[start-1]) {
		start--
	}
	name := window[start:i]
	if bytes.EqualFold(bytes.TrimLeft(name, " \t"), []byte("value")) {
		// <add key="Password" value="..."/>, {"name": "PASSWORD", "value": "..."}
		if pair := pairedName.FindSubmatch(window[max(0, start-120):start]); pair != nil {
			return string(pair[1]), true
		}
	}
	return string(name), i > start
}

var pairedName = regexp.MustCompile(`(?i)(?:key|name)["']?\s*[:=]\s*["']?([\w.-]+)["']?[\s,]*["']?\z`)

func isName(c byte) bool { return is(c, wordByte) || c == '.' || c == '-' || c == ' ' || c == '\t' }

// secretWords end the names of generic secrets.
var secretWords = []string{
	"password", "passwd", "passphrase", "secret", "token", "apikey", "accesskey", "authkey", "privatekey", "secretkey", "secretkeybase", "credential",
	"credentials", "clientsecret", "encryptionkey", "signingkey", "masterkey", "authorization", "apitoken", "accountkey", "sharedaccesskey", "pwd",
	"subscriptionkey", "storagekey", "authtoken", "auth",
}

// openWords are in names whose values are no secrets, though they end as one.
var openWords = []string{
	"public", "csrf", "xsrf", "nexttoken", "pagetoken", "continuationtoken", "paginationtoken", "canceltoken", "keyfile", "sha256", "sha512", "md5",
	"checksum", "digest", "integrity", "hash", "canonical", "fingerprint", "deletetoken",
}

// judgeNamed tells what a value is by its name; "" where it is no secret.
func judgeNamed(name string, value, window []byte, at int) (rule, detail string) {
	if !looksSecret(value) {
		return "", ""
	}
	squeezed := squeeze(name)
	if isSecret(value) && hasKeyIDNear(window, at) {
		return "", "" // reported at the id
	}
	if isSecret(value) && namesAWSSecret(name) {
		return "aws-credentials", "secret access key by its name"
	}
	if len(value) == 44 && value[43] == '=' && (strings.HasSuffix(squeezed, "privatekey") || strings.HasSuffix(squeezed, "presharedkey")) && looksRandom(value[:43], secretAlphabet) {
		return "private-key", "WireGuard key"
	}
	if isJWK(squeezed, value, window, at) {
		return "private-key", "private key as JSON web key"
	}
	for i := range namedSecrets {
		if namedSecrets[i].has(squeezed) && secretName(squeezed) && (squeezed == namedSecrets[i].words || !commonWords[namedSecrets[i].words] || saysSecret(squeezed)) && namedSecrets[i].compiled().Match(value) {
			return "named-secret", namedSecrets[i].kind + " by its name"
		}
	}
	last := squeeze(name[strings.LastIndexAny(name, " \t")+1:])
	for _, w := range openWords {
		if strings.Contains(last, w) {
			return "", ""
		}
	}
	for _, w := range secretWords {
		if strings.HasSuffix(last, w) && isGeneric(value) && !isResource(window, at) {
			return "named-secret", "value of a name that ends in " + w
		}
	}
	return "", ""
}

// isResource tells whether the value is the end of an AWS resource's name: arn:aws:secretsmanager:...:secret:name-a1b2c3.
func isResource(window []byte, at int) bool {
	before := window[max(0, at-160):at]
	i := bytes.LastIndex(before, []byte("arn:"))
	return i >= 0 && !bytes.ContainsAny(before[i:], " \t\r\n\"'")
}

// commonWords are services' names that other things have, too: beside them the name has to say that it is a secret's.
var commonWords = map[string]bool{"linear": true, "travis": true, "kraken": true, "plaid": true, "sentry": true, "etsy": true, "beamer": true, "confluent": true}

func saysSecret(squeezed string) bool {
	for _, w := range []string{"key", "token", "secret", "password", "auth", "api", "credential", "client", "access"} {
		if strings.Contains(squeezed, w) {
			return true
		}
	}
	return false
}

// secretName rules out what stands beside a service's name and is no secret: digests of its files, versions, addresses.
func secretName(squeezed string) bool {
	for _, w := range openWords {
		if strings.Contains(squeezed, w) {
			return false
		}
	}
	for _, w := range []string{"commit", "revision", "version", "uuid", "guid", "url", "path", "file", "etag"} {
		if strings.HasSuffix(squeezed, w) {
			return false
		}
	}
	return true
}

var marks = strings.NewReplacer("_", "", "-", "", ".", "", " ", "", "\t", "")

// squeeze drops case, blanks and marks.
func squeeze(name string) string { return marks.Replace(strings.ToLower(name)) }

// isJWK: the private exponent or scalar of a JSON web key (RFC 7518, 6.2.2 and 6.3.2), with its type near it. Members
// may be in any order: sorted by name, as Docker's key.json is, the type is behind three numbers.
func isJWK(name string, value, window []byte, at int) bool {
	if name != "d" || len(value) < 43 || !looksRandom(value, secretAlphabet) {
		return false
	}
	near := window[max(0, at-LookBehind):min(len(window), at+3*LookBehind)]
	for {
		i := bytes.Index(near, []byte("kty"))
		if i < 0 {
			return false
		}
		// As a word: in quotes of any kind, escaped ones too, or in none, as in YAML.
		behind := i + len("kty")
		if (i == 0 || !is(near[i-1], wordByte)) && behind < len(near) && !is(near[behind], wordByte) {
			return true
		}
		near = near[behind:]
	}
}

// looksSecret rules out words, paths and repetitions.
func looksSecret(value []byte) bool {
	return varied(value) && entropy(value) >= 2.6 && !isPlaceholder(value)
}

// isGeneric wants what a generated value has and an identifier, a path, a date or an address lacks.
func isGeneric(value []byte) bool {
	if !hasDigit(value) || entropy(value) < 3.2 || bytes.ContainsAny(value, "$*%^?#|\\") || bytes.Contains(value, []byte("://")) || bytes.Count(value, []byte(".")) > 2 {
		return false
	}
	value = bytes.TrimRight(value, "=")
	switches, words := 0, 0
	for i := 1; i < len(value); i++ {
		if kindOf(value[i]) != kindOf(value[i-1]) {
			switches++
		}
	}
	for _, part := range bytes.FieldsFunc(value, func(r rune) bool { return r < '0' || r > 'z' || r > '9' && r < 'A' || r > 'Z' && r < 'a' }) {
		if len(part) >= 3 && isLetters(part) {
			words++
		}
	}
	// Random text of both cases changes between them and digits at six of ten characters, of one case and digits at four.
	least := 2
	if bytes.ContainsFunc(value, isUpper) && bytes.ContainsFunc(value, isLower) {
		least = 4
	}
	return words <= 1 && switches*10 >= len(value)*least && !rustSymbol.Match(value)
}

// rustSymbol is the beginning of a mangled name, which has a crate's hash in it: a table of such names has `passwd>_RINvNtCs...`
// in Rust's own libraries (rustc's book, "v0 Symbol Format": _R, a path, and in that Cs, base 62, _, an identifier's length).
var rustSymbol = regexp.MustCompile(`^_R[CMXYNIB][A-Za-z]*Cs[0-9A-Za-z]+_[0-9]`)

func isUpper(r rune) bool { return r >= 'A' && r <= 'Z' }
func isLower(r rune) bool { return r >= 'a' && r <= 'z' }

// varied tells whether a value has a digit, or is long and changes case as only a random one does.
func varied(value []byte) bool {
	if hasDigit(value) {
		return true
	}
	switches := 0
	for i := 1; i < len(value); i++ {
		if kindOf(value[i]) != kindOf(value[i-1]) {
			switches++
		}
	}
	return len(value) >= 24 && switches*5 >= len(value)*2
}

func isLetters(text []byte) bool {
	for _, c := range text {
		if c|0x20 < 'a' || c|0x20 > 'z' {
			return false
		}
	}
	return true
}

func kindOf(c byte) int {
	switch {
	case c >= '0' && c <= '9':
		return 0
	case c >= 'A' && c <= 'Z':
		return 1
	case c >= 'a' && c <= 'z':
		return 2
	}
	return 3
}
