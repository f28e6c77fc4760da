package imds

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"
)

const fixture = `{"version":1,"token_key":"00112233445566778899aabbccddeeff","http_tokens":"required",
"http_endpoint":"enabled","instance_tags":true,"tags":{"Name":"web 1","team/a":"x"},"user_data_base64":"AAH/Cg==",
"tree":{"ami-id":"ami-1","instance-id":"i-1","security-groups":"a\nb",
"public-keys":{"0":{"openssh-key":"ssh-ed25519 AAAA me\n"}},
"network":{"interfaces":{"macs":{"02:00:00:00:00:01":{"device-number":"0"}}}}},
"key_names":["me"],"document":{"instanceId":"i-1","billingProducts":null}}`

var clock = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func serviceFor(t *testing.T, file string) *Server {
	t.Helper()
	return &Server{
		load: func() (*metadata, error) { return parseMetadata([]byte(file)) },
		now:  func() time.Time { return clock },
	}
}

// exchange sends raw bytes over one connection and returns all that came back.
func exchange(t *testing.T, s *Server, raw string) string {
	t.Helper()
	var out bytes.Buffer
	c := newConnection(strings.NewReader(raw), &out)
	c.now = s.now
	if err := c.serve(s.answer); err != nil {
		t.Fatalf("serve: %v", err)
	}
	return out.String()
}

func split(t *testing.T, answer string) (head, body string) {
	t.Helper()
	head, body, ok := strings.Cut(answer, "\r\n\r\n")
	if !ok {
		t.Fatalf("no end of headers in %q", answer)
	}
	return head, body
}

func token(t *testing.T, s *Server, ttl int) string {
	t.Helper()
	head, body := split(t, exchange(t, s, fmt.Sprintf(
		"PUT /latest/api/token HTTP/1.1\r\nHost: x\r\nX-aws-ec2-metadata-token-ttl-seconds: %d\r\n\r\n", ttl)))
	if !strings.HasPrefix(head, "HTTP/1.1 200 OK\r\n") {
		t.Fatalf("no token: %s", head)
	}
	if want := fmt.Sprintf("\r\nX-Aws-Ec2-Metadata-Token-Ttl-Seconds: %d\r\n", ttl); !strings.Contains(head, want) {
		t.Errorf("no ttl header in %q", head)
	}
	return body
}

func get(t *testing.T, s *Server, path, token string) (head, body string) {
	t.Helper()
	return split(t, exchange(t, s,
		"GET "+path+" HTTP/1.1\r\nHost: x\r\nX-aws-ec2-metadata-token: "+token+"\r\n\r\n"))
}

func TestPaths(t *testing.T) {
	s := serviceFor(t, fixture)
	key := token(t, s, 60)
	for path, want := range map[string]string{
		"/":                            strings.Join(versions, "\n"),
		"/latest":                      "dynamic\nmeta-data\nuser-data",
		"/2021-03-23/":                 "dynamic\nmeta-data\nuser-data",
		"/latest/meta-data":            "ami-id\ninstance-id\nnetwork/\npublic-keys/\nsecurity-groups\ntags/",
		"/latest/meta-data/":           "ami-id\ninstance-id\nnetwork/\npublic-keys/\nsecurity-groups\ntags/",
		"/latest/meta-data/ami-id":     "ami-1",
		"/latest/meta-data/ami-id/":    "ami-1",
		"//latest//meta-data//ami-id":  "ami-1",
		"/latest/meta-data/ami-id?a=b": "ami-1",
		"http://169.254.169.254/latest/meta-data/ami-id":                              "ami-1",
		"/1.0/meta-data/security-groups":                                              "a\nb",
		"/latest/meta-data/public-keys/":                                              "0=me",
		"/latest/meta-data/public-keys/0":                                             "openssh-key",
		"/latest/meta-data/public-keys/0/openssh-key":                                 "ssh-ed25519 AAAA me\n",
		"/latest/meta-data/network/interfaces/macs/":                                  "02:00:00:00:00:01/",
		"/latest/meta-data/network/interfaces/macs/02%3A00:00:00:00:01/device-number": "0",
		"/latest/meta-data/tags":                                                      "instance/",
		"/latest/meta-data/tags/instance/":                                            "Name\nteam/a",
		"/latest/meta-data/tags/instance/Name":                                        "web 1",
		"/latest/user-data":                                                           "\x00\x01\xff\n",
		"/latest/dynamic":                                                             "instance-identity/",
		"/latest/dynamic/instance-identity":                                           "document",
		"/latest/dynamic/instance-identity/document":                                  "{\n  \"instanceId\" : \"i-1\",\n  \"billingProducts\" : null\n}",
	} {
		head, body := get(t, s, path, key)
		if !strings.HasPrefix(head, "HTTP/1.1 200 OK\r\n") || body != want {
			t.Errorf("%s: %s\n got %q\nwant %q", path, strings.SplitN(head, "\r\n", 2)[0], body, want)
		}
		if want := fmt.Sprintf("\r\nContent-Length: %d\r\n", len(body)); !strings.Contains(head, want) {
			t.Errorf("%s: no %q in %q", path, want, head)
		}
	}
	for _, path := range []string{
		"/x", "/2020-01-01/meta-data", "/latest/x", "/latest/meta-data/x", "/latest/meta-data/ami-id/x",
		"/latest/meta-data/public-keys/1/openssh-key", "/latest/meta-data/../user-data", "/latest/user-data/x",
		"/latest/dynamic/instance-identity/pkcs7", "/latest/api",
	} {
		head, body := get(t, s, path, key)
		if !strings.HasPrefix(head, "HTTP/1.1 404 Not Found\r\n") || !strings.Contains(body, "<title>404 - Not Found</title>") {
			t.Errorf("%s: %q", path, head)
		}
	}
}

func TestTokens(t *testing.T) {
	s := serviceFor(t, fixture)
	good := token(t, s, 60)
	if len(good) != 56 {
		t.Errorf("token %q has %d characters", good, len(good))
	}
	foreign := serviceFor(t, strings.Replace(fixture, "0011", "0012", 1))
	changed := []byte(good)
	changed[8] ^= 1
	for name, c := range map[string]struct {
		token string
		after time.Duration
		want  string
	}{
		"good":              {good, 0, "200"},
		"last moment":       {good, 60*time.Second - 1, "200"},
		"expired":           {good, 60 * time.Second, "401"},
		"none":              {"", 0, "401"},
		"changed":           {string(changed), 0, "401"},
		"cut":               {good[:52], 0, "401"},
		"not base64":        {"!!!", 0, "401"},
		"another machine's": {token(t, foreign, 60), 0, "401"},
	} {
		s.now = func() time.Time { return clock.Add(c.after) }
		if head, _ := get(t, s, "/latest/meta-data/ami-id", c.token); !strings.HasPrefix(head, "HTTP/1.1 "+c.want) {
			t.Errorf("%s: %q, want %s", name, head, c.want)
		}
	}
}

func TestStatuses(t *testing.T) {
	optional := strings.Replace(fixture, `"required"`, `"optional"`, 1)
	disabled := strings.Replace(fixture, `"enabled"`, `"disabled"`, 1)
	bare := strings.NewReplacer(`"AAH/Cg=="`, "null", `"instance_tags":true`, `"instance_tags":false`,
		`"required"`, `"optional"`).Replace(fixture)
	const put = "PUT /latest/api/token HTTP/1.1\r\nHost: x\r\n"
	const ttl = "X-aws-ec2-metadata-token-ttl-seconds: "
	for name, c := range map[string]struct{ file, raw, want string }{
		"ttl 1":              {fixture, put + ttl + "1\r\n\r\n", "200"},
		"ttl 21600":          {fixture, put + ttl + "21600\r\n\r\n", "200"},
		"ttl missing":        {fixture, put + "\r\n", "400"},
		"ttl 0":              {fixture, put + ttl + "0\r\n\r\n", "400"},
		"ttl too long":       {fixture, put + ttl + "21601\r\n\r\n", "400"},
		"ttl text":           {fixture, put + ttl + "1h\r\n\r\n", "400"},
		"through a proxy":    {fixture, put + ttl + "60\r\nx-FORWARDED-for: 1.2.3.4\r\n\r\n", "403"},
		"token by GET":       {fixture, "GET /latest/api/token HTTP/1.1\r\nHost: x\r\n\r\n", "405"},
		"POST":               {fixture, "POST /latest/user-data HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nab", "405"},
		"OPTIONS":            {fixture, "OPTIONS /latest HTTP/1.1\r\nHost: x\r\n\r\n", "200"},
		"v1 refused":         {fixture, "GET / HTTP/1.1\r\nHost: x\r\n\r\n", "401"},
		"v1 allowed":         {optional, "GET / HTTP/1.1\r\nHost: x\r\n\r\n", "200"},
		"v1, bad token":      {optional, "GET / HTTP/1.1\r\nHost: x\r\nX-aws-ec2-metadata-token: x\r\n\r\n", "401"},
		"disabled":           {disabled, "GET / HTTP/1.1\r\nHost: x\r\n\r\n", "403"},
		"disabled, token":    {disabled, put + ttl + "60\r\n\r\n", "403"},
		"no user data":       {bare, "GET /latest/user-data HTTP/1.0\r\n\r\n", "404"},
		"tags not enabled":   {bare, "GET /latest/meta-data/tags/instance HTTP/1.0\r\n\r\n", "404"},
		"no Host":            {optional, "GET / HTTP/1.1\r\n\r\n", "400"},
		"only line feeds":    {optional, "GET / HTTP/1.1\nHost: x\n\n", "200"},
		"empty lines first":  {optional, "\r\n\r\nGET / HTTP/1.0\r\n\r\n", "200"},
		"HTTP/0.9":           {optional, "GET /\r\n\r\n", "400"},
		"HTTP/2":             {optional, "PRI * HTTP/2.0\r\n\r\n", "505"},
		"TLS":                {optional, "\x16\x03\x01\x02\x00\x01\x00\x01\n", "400"},
		"bad escape":         {optional, "GET /%zz HTTP/1.0\r\n\r\n", "400"},
		"relative":           {optional, "GET latest HTTP/1.0\r\n\r\n", "400"},
		"folded header":      {optional, "GET / HTTP/1.0\r\nA: b\r\n c\r\n\r\n", "400"},
		"space before colon": {optional, "GET / HTTP/1.0\r\nHost : x\r\n\r\n", "400"},
		"long line":          {optional, "GET /" + strings.Repeat("a", maxHeadBytes) + " HTTP/1.0\r\n\r\n", "431"},
		"many headers":       {optional, "GET / HTTP/1.0\r\n" + strings.Repeat("A: b\r\n", 4000) + "\r\n", "431"},
		"chunked":            {optional, "GET / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "501"},
		"large body":         {optional, "GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n", "413"},
		"bad length":         {optional, "GET / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", "400"},
		"broken file":        {"{", "GET / HTTP/1.0\r\n\r\n", "500"},
	} {
		if answer := exchange(t, serviceFor(t, c.file), c.raw); !strings.HasPrefix(answer, "HTTP/1.1 "+c.want+" ") {
			t.Errorf("%s: %.60q, want %s", name, answer, c.want)
		} else if strings.Count(answer, "HTTP/1.1 ") != 1 {
			t.Errorf("%s: more than one answer: %q", name, answer)
		}
	}
}

func TestBadFiles(t *testing.T) {
	for name, change := range map[string][2]string{
		"version":       {`"version":1`, `"version":2`},
		"short key":     {"00112233445566778899aabbccddeeff", "0011"},
		"key not hex":   {"00112233", "zz112233"},
		"http_tokens":   {`"required"`, `"maybe"`},
		"http_endpoint": {`"enabled"`, `"on"`},
		"user data":     {"AAH/Cg==", "***"},
		"number leaf":   {`"device-number":"0"`, `"device-number":0`},
		"null leaf":     {`"device-number":"0"`, `"device-number":null`},
		"no tree":       {`"tree"`, `"shrub"`},
	} {
		changed := strings.Replace(fixture, change[0], change[1], 1)
		if _, err := parseMetadata([]byte(changed)); changed == fixture || err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestConnections(t *testing.T) {
	s := serviceFor(t, strings.Replace(fixture, `"required"`, `"optional"`, 1))
	const kept = "GET /latest/meta-data/ami-id HTTP/1.1\r\nHost: x\r\n\r\n"
	const closed = "GET /latest/meta-data/ami-id HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
	for name, c := range map[string]struct {
		raw     string
		answers int
	}{
		"kept alive, then closed":   {kept + kept + closed + kept, 3},
		"HTTP/1.0 closes":           {"GET / HTTP/1.0\r\n\r\n" + kept, 1},
		"HTTP/1.0 asks to be kept":  {"GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n" + closed, 2},
		"body is skipped":           {"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc" + closed, 2},
		"nothing after a bad one":   {"what?\r\n\r\n" + kept, 1},
		"nothing at all":            {"", 0},
		"errors keep it open (404)": {"GET /x HTTP/1.1\r\nHost: x\r\n\r\n" + closed, 2},
	} {
		if got := strings.Count(exchange(t, s, c.raw), "HTTP/1.1 "); got != c.answers {
			t.Errorf("%s: %d answers, want %d", name, got, c.answers)
		}
	}
	head, body := split(t, exchange(t, s, "HEAD /latest/meta-data/ami-id HTTP/1.1\r\nHost: x\r\n\r\n"))
	if body != "" || !strings.Contains(head, "Content-Length: 5\r\n") || !strings.Contains(head, "Server: EC2ws") {
		t.Errorf("HEAD: %q %q", head, body)
	}
	var out bytes.Buffer
	if err := newConnection(strings.NewReader("GET / HT"), &out).serve(s.answer); err == nil || out.Len() > 0 {
		t.Errorf("cut request: error %v, output %q", err, out.String())
	}
}
