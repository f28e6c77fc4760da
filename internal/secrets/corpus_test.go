package secrets

import (
	"bytes"
	"crypto/dsa" //lint:ignore SA1019 old keys are what the test is about
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"encoding/base64"
	"encoding/binary"
	"encoding/pem"
	"math/big"
	"slices"
	"strings"
	"testing"
	"unicode/utf16"

	"instantenv/internal/secrets/secretstest"
)

// wide is text as UTF-16 of one byte order.
func wide(text string, order binary.ByteOrder) string {
	var out bytes.Buffer
	for _, unit := range utf16.Encode([]rune(text)) {
		binary.Write(&out, order, unit)
	}
	return out.String()
}

// encodings are the forms in which a line of a file may be on a disk. around is text on both sides of it, of which the
// tests take several lengths, so that samples fall everywhere.
var encodings = map[string]func(text string) string{
	"plain":           func(text string) string { return text },
	"JSON":            func(text string) string { return `{"a": "x\n` + strings.ReplaceAll(text, "/", `\/`) + `\nb"}` },
	"JSON in JSON":    func(text string) string { return `{"a": "x\\n` + text + `\\nb"}` },
	"Windows":         func(text string) string { return "\r\n" + text + "\r\n" },
	"UTF-16LE":        func(text string) string { return "\xff\xfe" + wide("line\r\n"+text+"\r\n", binary.LittleEndian) },
	"UTF-16BE":        func(text string) string { return "\xfe\xff" + wide("line\n"+text+"\n", binary.BigEndian) },
	"base64":          func(text string) string { return base64.StdEncoding.EncodeToString([]byte("# file\n" + text + "\n")) },
	"base64, for URL": func(text string) string { return "data: " + base64.RawURLEncoding.EncodeToString([]byte(text+"\n")) },
}

// found reports the details of what is found in a text at several distances from the start.
func found(t *testing.T, scanner *Scanner, text string) map[string]bool {
	t.Helper()
	details := map[string]bool{}
	for _, before := range []int{0, 1, 7, 14} {
		padded := strings.Repeat(" ", before) + text + "\n"
		hits := 0
		scanner.Scan(strings.NewReader(padded), func(h Hit) {
			hits++
			details[strings.TrimSuffix(h.Detail, " in base64")] = true
		})
		if hits == 0 {
			return nil
		}
	}
	return details
}

// planted makes a text in which a token's kind is found.
func planted(t *testing.T, kind token) string {
	text := kind.prefix + secretstest.Random(t, kind.form)
	switch {
	case kind.kind == "PuTTY private key":
		return text + ": ssh-ed25519\nPrivate-Lines: 1\n" + base64.StdEncoding.EncodeToString(randomBytes(t, 36))
	case strings.HasPrefix(kind.kind, "Tor"):
		return text + " type0 ==   " + base64.StdEncoding.EncodeToString(randomBytes(t, 64))
	case strings.HasPrefix(kind.kind, "AWS key id"):
		return "id = " + text + " key = " + secretstest.Secret
	case kind.kind == "Azure shared access signature":
		return "https://a.blob.core.windows.net/c?sv=2024-11-04&se=2031-01-01T00:00Z&sig=" + secretstest.Random(t, `[0-9A-Za-z]{42}`) + "%2B%3D"
	case kind.kind == "Vault" && kind.prefix == "s.":
		for !mixes([]byte(text), 0, len(text)) {
			text = kind.prefix + secretstest.Random(t, kind.form)
		}
	}
	return text
}

func TestEveryTokenIsFoundInEveryEncoding(t *testing.T) {
	scanner := scannerFor(t)
	for _, kind := range tokens {
		for name, encode := range encodings {
			text := planted(t, kind)
			if details := found(t, scanner, encode("value "+text)); !details[kind.kind] {
				t.Errorf("%s (%s) in %s: found %v in %q", kind.kind, kind.prefix, name, details, text)
			}
		}
	}
}

// TestEveryNamedSecretIsFound: what is known by its name, as configuration files of several kinds write it.
func TestEveryNamedSecretIsFound(t *testing.T) {
	scanner := scannerFor(t)
	for _, kind := range namedSecrets {
		for range 4 {
			value := secretstest.Random(t, kind.form)
			for !looksSecret([]byte(value)) || len(value) < minValue {
				value = secretstest.Random(t, kind.form)
			}
			name := strings.ToUpper(strings.Fields(kind.words)[0])
			for _, line := range []string{
				name + "_KEY=" + value, "export " + name + "_TOKEN='" + value + "'", `"` + strings.ToLower(name) + `": "` + value + `",`,
				strings.ToLower(name) + "-api-key: " + value, `put("` + name + `_KEY", "` + value + `")`, name + "_TOKEN => '" + value + "'",
			} {
				if kind.kind == "Freemius" {
					line = `'secret_key' => '` + value + `'`
				}
				if details := found(t, scanner, line); len(details) == 0 {
					t.Errorf("%s: nothing found in %q", kind.kind, line)
				}
			}
		}
	}
	generated := secretstest.Random(t, `(?:[a-z][0-9][A-Z]){8}`)
	for _, line := range []string{
		"DB_PASSWORD=" + generated, `"clientSecret": "` + generated + `"`, "api_key: " + generated, "<password>" + generated + "</password>",
		`{\"token\": \"` + generated + `\"}`, "Authorization: Bearer " + generated, "curl -u deploy:" + generated + " https://a.internal/",
		"--token=" + generated, `<add key="ClearTextPassword" value="` + generated + `" />`, `{"name": "DB_PASSWORD", "value": "` + generated + `"}`,
		"- name: API_TOKEN\n  value: " + generated, "secret_key_base = '" + generated + "'", `aws_secret_access_key = ` + secretstest.Secret,
		`"SecretAccessKey": "` + strings.ReplaceAll(secretstest.Secret, "/", `\/`) + `"`, "https://deploy:" + generated + "@git.corp.internal/x.git",
		"PrivateKey = " + base64.StdEncoding.EncodeToString(randomBytes(t, 32)), `{"kty":"EC","crv":"P-256","d":"` + base64.RawURLEncoding.EncodeToString(randomBytes(t, 32)) + `"}`,
		"apiVersion: v1\nkind: Secret\nmetadata:\n  name: a\ndata:\n  key: " + base64.StdEncoding.EncodeToString(randomBytes(t, 24)),
		"key " + secretstest.Random(t, `[0-9a-f]{32}`) + "-us12", "KEY=" + secretstest.Random(t, `[0-9a-f]{32}`) + "-us7",
		"TELEGRAM=" + secretstest.Random(t, `[0-9]{9}:A[0-9A-Za-z_-]{34}`), "x=" + secretstest.Random(t, `[0-9A-Za-z]{3}8Q~[0-9A-Za-z_.-]{34}`),
		"bot " + secretstest.Random(t, `M[0-9A-Za-z]{23}\.[0-9A-Za-z]{6}\.[0-9A-Za-z]{27}`), "licence " + secretstest.Random(t, `[0-9A-Za-z]{6}_[0-9A-Za-z]{29}`) + "_mmk",
	} {
		for _, order := range []binary.ByteOrder{nil, binary.LittleEndian} {
			text := line
			if order != nil {
				text = wide(line, order)
			}
			if details := found(t, scanner, text); len(details) == 0 {
				t.Errorf("nothing found in %q", line)
			}
		}
	}
	far := "id " + secretstest.KeyID + strings.Repeat("\n# a comment that is long", 100) + "\naws_secret_access_key = " + secretstest.Secret
	if details := found(t, scanner, far); !details["secret access key by its name"] {
		t.Errorf("far from its id: found %v", details)
	}
}

// TestEveryFormOfJWK: keys of all types, members in any order, as JSON and what resembles it; and what has the form of one
// and no private part.
func TestEveryFormOfJWK(t *testing.T) {
	scanner := scannerFor(t)
	number := func(bytes int) string { return base64.RawURLEncoding.EncodeToString(randomBytes(t, bytes)) }
	x, y, n := number(32), number(32), number(512)
	const id = "ABCD:EFGH:IJKL:MNOP:QRST:UVWX:YZ23:4567:ABCD:EFGH:IJKL:MNOP"
	docker := `{"crv":"P-256","d":"` + number(32) + `","kid":"` + id + `","kty":"EC","x":"` + x + `","y":"` + y + `"}`
	sorted := `{"d":"` + number(512) + `","dp":"` + number(256) + `","dq":"` + number(256) + `","e":"AQAB","kid":"` + id + `","kty":"RSA","n":"` + n + `"}`
	typeFirst := `{"kty":"RSA","n":"` + n + `","e":"AQAB","d":"` + number(512) + `"}`
	edwards := `{"kty": "OKP", "crv": "Ed25519", "x": "` + x + `", "d": "` + number(32) + `"}`
	for name, key := range map[string]string{
		"Docker's": docker, "RSA, sorted": sorted, "RSA": typeFirst, "Ed25519": edwards, "a set": `{"keys":[` + docker + `]}`,
		"indented": strings.NewReplacer(`,"`, ",\n    \"", `":"`, `": "`).Replace(docker), "wide": wide(docker, binary.LittleEndian),
		"in a string": `{"key":"` + strings.ReplaceAll(docker, `"`, `\"`) + `"}`, "Python's": strings.ReplaceAll(edwards, `"`, `'`),
		"YAML": "kty: EC\ncrv: P-256\nd: " + number(32) + "\n", "in base64": base64.StdEncoding.EncodeToString([]byte(docker)),
	} {
		details := found(t, scanner, key)
		if !details["private key as JSON web key"] || len(details) != 1 {
			t.Errorf("%s: found %v in %q", name, details, key)
		}
	}
	for _, text := range []string{
		`{"crv":"P-256","kid":"` + id + `","kty":"EC","x":"` + x + `","y":"` + y + `"}`, `{"kty":"RSA","n":"` + n + `","e":"AQAB"}`,
		`{"keys":[{"kty":"OKP","crv":"Ed25519","kid":"d","x":"` + x + `"}]}`, `{"kty":"EC","d":"` + strings.Repeat("A", 43) + `"}`,
		`{"kty":"EC","d":"private"}`, `{"kty":"EC","id":"` + x + `"}`, `{"d":"` + x + `","x":"` + y + `"}`, `{"d":"` + x + `","pkty":"EC","ktype":1}`,
		`{"d":"M10 10h12.5v-3.25l4-4.75c2.5-1.25 3.75-6.5 8.25-9.75Z","type":"path"}`,
	} {
		scanner.Scan(strings.NewReader(text+"\n"), func(h Hit) { t.Errorf("%s (%s) in %q", h.Rule, h.Detail, text) })
	}
}

func randomBytes(t *testing.T, count int) []byte {
	t.Helper()
	text := make([]byte, count)
	if _, err := rand.Read(text); err != nil {
		t.Fatal(err)
	}
	return text
}

// pemForms are the ways in which a key in PEM is written.
var pemForms = map[string]func(key string) string{
	"lines":            func(key string) string { return key },
	"one line":         func(key string) string { return strings.ReplaceAll(key, "\n", "") },
	"one line, blanks": func(key string) string { return strings.ReplaceAll(key, "\n", " ") },
	"blank behind":     func(key string) string { return strings.ReplaceAll(key, "-----\n", "----- \n") },
	"tab behind":       func(key string) string { return strings.ReplaceAll(key, "-----\n", "-----\t\r\n") },
	"escaped":          func(key string) string { return strings.ReplaceAll(key, "\n", `\n`) },
	"escaped twice":    func(key string) string { return strings.ReplaceAll(key, "\n", `\\n`) },
	"escaped for C":    func(key string) string { return `"` + strings.ReplaceAll(key, "\n", "\\n\"\n\"") + `"` },
	"joined":           func(key string) string { return "'" + strings.ReplaceAll(key, "\n", "\\n' +\n  '") + "'" },
	"continued":        func(key string) string { return strings.ReplaceAll(key, "\n", "\\\n") },
	"slashes in JSON":  func(key string) string { return strings.NewReplacer("/", `\/`, "\n", `\r\n`).Replace(key) },
	"in a URL":         func(key string) string { return percent(key) },
	"in a form":        func(key string) string { return strings.ReplaceAll(percent(key), "%20", "+") },
	"in XML":           func(key string) string { return strings.ReplaceAll(key, "\n", "&#10;") },
	"indented":         func(key string) string { return strings.ReplaceAll(key, "\n", "\n      ") },
	"in a comment":     func(key string) string { return "# " + strings.ReplaceAll(key, "\n", "\n# ") },
	"quoted in a mail": func(key string) string { return "> " + strings.ReplaceAll(key, "\n", "\n> ") },
	"UTF-16LE":         func(key string) string { return wide(key, binary.LittleEndian) },
	"UTF-16BE":         func(key string) string { return "\x00" + wide(strings.ReplaceAll(key, "\n", "\r\n"), binary.BigEndian) },
	"base64":           func(key string) string { return base64.StdEncoding.EncodeToString([]byte(key)) },
	"base64 behind text": func(key string) string {
		return base64.StdEncoding.EncodeToString([]byte("some\x01\x02\x03bytes of another kind:\n\n\n" + key))
	},
	"base64 in lines": func(key string) string { return folded(base64.StdEncoding.EncodeToString([]byte(key))) },
	"base64 in UTF-16": func(key string) string {
		return wide(base64.StdEncoding.EncodeToString([]byte(key)), binary.LittleEndian)
	},
	"UTF-16 in base64": func(key string) string { return folded(base64.StdEncoding.EncodeToString([]byte("k: " + key))) },
}

func percent(text string) string {
	return strings.NewReplacer("\n", "%0A", "+", "%2B", "/", "%2F", "=", "%3D", " ", "%20").Replace(text)
}

func folded(text string) string {
	var out strings.Builder
	for len(text) > 76 {
		out.WriteString(text[:76] + "\n")
		text = text[76:]
	}
	return out.String() + text
}

func TestEveryFormOfPEM(t *testing.T) {
	scanner := scannerFor(t)
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	armour := "-----BEGIN PGP PRIVATE KEY BLOCK-----\nVersion: 1\nComment: made by a test\n\n" + folded(base64.StdEncoding.EncodeToString(randomBytes(t, 600))) + "\n=abcd\n-----END PGP PRIVATE KEY BLOCK-----\n"
	rsa := secretstest.RSAKey(t)
	for kind, key := range map[string]string{
		"PKCS#8": secretstest.Ed25519Key(t), "PKCS#1": rsa, "EC": secretstest.PKCS8(t, ec), "PGP": armour,
		"encrypted": strings.Replace(rsa, "-----\n", "-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,0123456789ABCDEF\n\n", 1),
		"SSH.com":   strings.NewReplacer("-----BEGIN RSA", "---- BEGIN SSH2 ENCRYPTED", "KEY-----", "KEY ----", "-----END RSA", "---- END SSH2 ENCRYPTED").Replace(rsa),
	} {
		for name, write := range pemForms {
			if kind == "SSH.com" && (strings.HasPrefix(name, "in a ") || name == "base64 behind text") {
				continue // its header is not PEM's
			}
			details := found(t, scanner, write(key))
			if len(details) != 1 {
				t.Errorf("%s, %s: found %v", kind, name, details)
			}
		}
	}
}

func TestEveryBinaryKey(t *testing.T) {
	scanner := scannerFor(t)
	_, edwards, _ := ed25519.GenerateKey(rand.Reader)
	large, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8 := func(key any) string {
		block, _ := pem.Decode([]byte(secretstest.PKCS8(t, key)))
		return string(block.Bytes)
	}
	anywhere := map[string]string{}
	atStart := map[string]string{"RSA": pkcs8(large), "Ed25519": pkcs8(edwards), "PKCS#1": string(x509.MarshalPKCS1PrivateKey(large)), "DSA": dsaKey(t)}
	for name, curve := range map[string]elliptic.Curve{"P-224": elliptic.P224(), "P-256": elliptic.P256(), "P-384": elliptic.P384(), "P-521": elliptic.P521()} {
		key, err := ecdsa.GenerateKey(curve, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		atStart[name] = pkcs8(key)
		sec1, err := x509.MarshalECPrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		atStart["SEC 1 "+name] = string(sec1)
	}
	random := string(randomBytes(t, 400))
	atStart["OpenSSH"] = "openssh-key-v1\x00\x00\x00\x00\x04none\x00\x00\x00\x04none\x00\x00\x00\x00" + random
	anywhere["Tor"] = "== ed25519v1-secret: type0 ==\x00\x00\x00" + random
	anywhere["PuTTY"] = "PuTTY-User-Key-File-3: ssh-ed25519\r\nEncryption: none\r\nComment: a\r\nPublic-Lines: 2\r\n" + folded(base64.StdEncoding.EncodeToString([]byte(random[:64]))) +
		"\r\nPrivate-Lines: 1\r\n" + base64.StdEncoding.EncodeToString([]byte(random[:36])) + "\r\nPrivate-MAC: 00\r\n"
	atStart["SSH 1"] = "SSH PRIVATE KEY FILE FORMAT 1.1\n\x00\x00\x00\x00\x00\x00" + random
	anywhere["minisign"] = "untrusted comment: minisign encrypted secret key\nRWRTY0Iy" + base64.StdEncoding.EncodeToString([]byte(random[:150])) + "\n"
	atStart["PGP"] = "\x95\x03\x98\x04\x60\x00\x00\x00\x01\x08\x00\x80" + random
	atStart["PGP, new form"] = "\xc5\x58\x04\x60\x00\x00\x00\x16\x09\x2b\x06\x01\x04\x01\xda\x47\x0f\x01\x01\x07" + random
	atStart["Java"] = "\xfe\xed\xfe\xed\x00\x00\x00\x02\x00\x00\x00\x01\x00\x00\x00\x01\x00\x05alias" + random
	atStart["KeePass"] = "\x03\xd9\xa2\x9a\x67\xfb\x4b\xb5" + random
	atStart["keytab"] = "\x05\x02\x00\x00\x00\x40\x00\x02\x00\x0bEXAMPLE.ORG\x00\x04host" + random
	atStart["PKCS#12"] = "\x30\x82\x08\x00\x02\x01\x03\x30\x82\x07\xf0" + random[:40] + "\x06\x0b\x2a\x86\x48\x86\xf7\x0d\x01\x0c\x0a\x01\x02" + random
	atStart["encrypted PKCS#8"] = "\x30\x81\xc0\x30\x50\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x05\x0d" + random
	for name, key := range anywhere {
		if details := found(t, scanner, "\x01some bytes\x00"+key+strings.Repeat("\x00", 64)); len(details) != 1 {
			t.Errorf("%s: found %v", name, details)
		}
	}
	for name, key := range atStart {
		for _, block := range []int{0, 1024, 4096 * 3, chunkSize, chunkSize - 1024} {
			disk := strings.Repeat("\x00", block) + key + strings.Repeat("\x00", 1024)
			var offsets []int64
			scanner.Scan(strings.NewReader(disk), func(h Hit) { offsets = append(offsets, h.Offset) })
			if !slices.Equal(offsets, []int64{int64(block)}) {
				t.Errorf("%s at %d: found at %v", name, block, offsets)
			}
		}
	}
}

func dsaKey(t *testing.T) string {
	t.Helper()
	var key dsa.PrivateKey
	if err := dsa.GenerateParameters(&key.Parameters, rand.Reader, dsa.L1024N160); err != nil {
		t.Fatal(err)
	}
	if err := dsa.GenerateKey(&key, rand.Reader); err != nil {
		t.Fatal(err)
	}
	der, err := asn1.Marshal(struct{ Version, P, Q, G, Y, X *big.Int }{big.NewInt(0), key.P, key.Q, key.G, key.Y, key.X})
	if err != nil {
		t.Fatal(err)
	}
	return string(der)
}

// TestLookAlikes: what resembles a secret and is none.
func TestLookAlikes(t *testing.T) {
	scanner := scannerFor(t)
	public := secretstest.RSAKey(t)
	for _, text := range []string{
		"ghp_" + strings.Repeat("x", 36), "glpat-XXXXXXXXXXXXXXXXXXXX", "AKIAIOSFODNN7EXAMPLE wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
		"aws_secret_access_key = wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", "aws_secret_access_key = <your secret access key of 40 characters>",
		"https://user:password@example.com/", "https://user:pass@host:8080/", "http://%s:%s@%s/", "https://${USER}:${PASSWORD}@git.corp.internal/x",
		"https://www.rfc-editor.org/rfc/rfc9580:section5@x", "postgres://user:secret@localhost/db", "git@github.com:owner/repository-of-some-name.git",
		"sk_live_xxxxxxxxxxxxxxxxxxxxxxxx", "xoxb-your-token-goes-here-123456", "AIzaSyabcdefghijklmnopqrstuvwxyz1234567", "password = os.environ['DB_PASSWORD_PRODUCTION_1']",
		"token: str | None = None", "linux::passwd>_RINvNtCsgEmfK2I1SDS_4core3ptr8null_mutNtNtNtNtCslhJMPQjvccJ_4libc4unix10linux_like5linux6passwdECsjrHSEGnQ3l9_3std",
		"secret_token_name=my-service-account-token-2", "sha256: 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
		`"integrity": "sha512-` + base64.StdEncoding.EncodeToString(randomBytes(t, 64)) + `"`, "password: ${{ secrets.DEPLOY_PASSWORD_2 }}",
		"api_key_path=/etc/service/keys/api-key-2024.json", "linear-gradient: 9f86d081884c7d659a2feaa0c55ad015", "AUTH_TOKEN=$(cat /run/secrets/token1)",
		"next_token: " + secretstest.Random(t, `(?:[a-z][0-9][A-Z]){9}`), "csrf_token = " + secretstest.Random(t, `(?:[a-z][0-9][A-Z]){9}`),
		strings.ReplaceAll(public, "PRIVATE", "PUBLIC"), base64.StdEncoding.EncodeToString([]byte(strings.ReplaceAll(public, "RSA PRIVATE KEY", "CERTIFICATE"))),
		"PuTTY-User-Key-File-3: ssh-rsa\nPrivate-Lines: ", "openssh-key-v1\x00\x00\x00\x00\x00ssh-ed25519", "kind: Secret\nmetadata:\n  name: empty\n",
		wide("A sentence in UTF-16 that is no secret: password and token.", binary.LittleEndian), "-----BEGIN PGP PRIVATE KEY BLOCK-----\n\n...\n",
		"usr/lib/python3/dist-packages/cryptography/hazmat/primitives/serialization", "s.getElementsByTagNameNS12", "private_key: PKCS7PrivateKeyTypes,", "(token, precisionBits=16)",
		"arn:aws:secretsmanager:us-west-2:123456789012:secret:" + secretstest.Random(t, `(?:[a-z][0-9][A-Z]){8}`), "\x30\x82\x03\x00\x30\x82\x02\x00certificate" + string(randomBytes(t, 600)),
		"\xfe\xed\xfe\xed\x00\x00\x00\x02\x00\x00\x00\x01\x00\x00\x00\x02\x00\x05trust" + string(randomBytes(t, 600)), "key-0123456789abcdef0123456789abcdef",
	} {
		scanner.Scan(strings.NewReader(text+"\n"), func(h Hit) { t.Errorf("%s (%s) in %q", h.Rule, h.Detail, text[:min(len(text), 80)]) })
	}
}

// TestRandomBytesHoldNothing: 256 MiB of compressed files are like this.
func TestRandomBytesHoldNothing(t *testing.T) {
	scanner := scannerFor(t)
	for range 4 {
		scanner.Scan(bytes.NewReader(randomBytes(t, 16<<20)), func(h Hit) { t.Errorf("%+v", h) })
	}
}

// TestKindsOfGitleaks: every rule of gitleaks' default configuration (commit 009e025ad410) has a kind here.
func TestKindsOfGitleaks(t *testing.T) {
	sources := map[string]bool{}
	for _, kind := range Kinds() {
		for _, id := range strings.FieldsFunc(kind.Source, func(r rune) bool { return strings.ContainsRune(" ,;()", r) }) {
			sources[id] = true
		}
	}
	for id := range strings.FieldsSeq(gitleaksRules) {
		if !sources[id] {
			t.Errorf("no kind for gitleaks' %s", id)
		}
	}
}

const gitleaksRules = `1password-secret-key 1password-service-account-token adafruit-api-key adobe-client-id adobe-client-secret age-secret-key
	airtable-api-key algolia-api-key alibaba-access-key-id alibaba-secret-key anthropic-admin-api-key anthropic-api-key artifactory-api-key
	artifactory-reference-token asana-client-id asana-client-secret atlassian-api-token authress-service-client-access-key aws-access-token
	azure-ad-client-secret beamer-api-token bitbucket-client-id bitbucket-client-secret bittrex-access-key bittrex-secret-key cisco-meraki-api-key
	clickhouse-cloud-api-secret-key clojars-api-token cloudflare-api-key cloudflare-global-api-key cloudflare-origin-ca-key codecov-access-token
	cohere-api-token coinbase-access-token confluent-access-token confluent-secret-key contentful-delivery-api-token curl-auth-header curl-auth-user
	database-password databricks-api-token datadog-access-token defined-networking-api-token digitalocean-access-token digitalocean-pat
	digitalocean-refresh-token discord-api-token discord-client-id discord-client-secret doppler-api-token droneci-access-token dropbox-api-token
	dropbox-long-lived-api-token dropbox-short-lived-api-token duffel-api-token dynatrace-api-token easypost-api-token easypost-test-api-token
	etsy-access-token facebook-access-token facebook-page-access-token facebook-secret fastly-api-token finicity-api-token finicity-client-secret
	finnhub-access-token flickr-access-token flutterwave-encryption-key flutterwave-public-key flutterwave-secret-key flyio-access-token frameio-api-token
	freemius-secret-key freshbooks-access-token gcp-api-key generic-api-key github-app-token github-fine-grained-pat github-oauth github-pat
	github-refresh-token gitlab-cicd-job-token gitlab-deploy-token gitlab-feature-flag-client-token gitlab-feed-token gitlab-incoming-mail-token
	gitlab-kubernetes-agent-token gitlab-oauth-app-secret gitlab-pat gitlab-pat-routable gitlab-ptt gitlab-rrt gitlab-runner-authentication-token
	gitlab-runner-authentication-token-routable gitlab-scim-token gitlab-session-cookie gitter-access-token gocardless-api-token grafana-api-key
	grafana-cloud-api-token grafana-service-account-token harness-api-key hashicorp-tf-api-token hashicorp-tf-password heroku-api-key heroku-api-key-v2
	hubspot-api-key huggingface-access-token huggingface-organization-api-token infracost-api-token intercom-api-key intra42-client-secret jfrog-api-key
	jfrog-identity-token jwt jwt-base64 kraken-access-token kubernetes-secret-yaml kucoin-access-token kucoin-secret-key launchdarkly-access-token
	linear-api-key linear-client-secret linkedin-client-id linkedin-client-secret lob-api-key lob-pub-api-key mailchimp-api-key
	mailgun-private-api-token mailgun-pub-key mailgun-signing-key mapbox-api-token mattermost-access-token maxmind-license-key messagebird-api-token
	messagebird-client-id microsoft-teams-webhook netlify-access-token new-relic-browser-api-token new-relic-insert-key new-relic-user-api-id
	new-relic-user-api-key notion-api-token npm-access-token nytimes-access-token octopus-deploy-api-key okta-access-token openai-api-key
	openshift-user-token perplexity-api-key pkcs12-file plaid-api-token plaid-client-id plaid-secret-key planetscale-api-token planetscale-oauth-token
	planetscale-password postman-api-token prefect-api-token private-key privateai-api-token pulumi-api-token pypi-upload-token rapidapi-access-token
	readme-api-token rubygems-api-token scalingo-api-token sendbird-access-id sendbird-access-token sendgrid-api-token sendinblue-api-token
	sentry-access-token sentry-org-token sentry-user-token settlemint-application-access-token settlemint-personal-access-token
	settlemint-service-access-token shippo-api-token shopify-access-token shopify-custom-access-token shopify-private-app-access-token
	shopify-shared-secret sidekiq-secret sidekiq-sensitive-url slack-app-token slack-bot-token slack-config-access-token slack-config-refresh-token
	slack-legacy-bot-token slack-legacy-token slack-legacy-workspace-token slack-user-token slack-webhook-url snyk-api-token sonar-api-token
	sourcegraph-access-token square-access-token squarespace-access-token stripe-access-token sumologic-access-id sumologic-access-token
	telegram-bot-api-token travisci-access-token twilio-api-key twitch-api-token twitter-access-secret twitter-access-token twitter-api-key
	twitter-api-secret twitter-bearer-token typeform-api-token vault-batch-token vault-service-token yandex-access-token yandex-api-key
	yandex-aws-access-token zendesk-secret-key nuget-config-password`
