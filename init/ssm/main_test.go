package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"instantenv/init/internal/imds"
	"instantenv/init/internal/inittest"
	"instantenv/internal/sigv4"
)

const testKey = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"

// AKIDEXAMPLE's credentials and the signatures are those of AWS's Signature Version 4 test suite.
var example = sigv4.Credentials{AccessKeyID: "AKIDEXAMPLE", SecretAccessKey: "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"}

func TestSign(t *testing.T) {
	token := "AQoDYXdzEPT//////////wEXAMPLEtc764bNrC9SAPBSM22wDOk4x4HIZ8j4FZTwdQWLWsKWHGBuFqwAeMicRXmxfpSPfIeoIYRqTflfKD8YUuwthAx7" +
		"mSEI/qkPpKPi/kMcGdQrmGdeehM4IC1NtBmUpp2wUE8phUZampKsburEDy0KPkyQDYwT7WZ0wq5VSXDvp75YU9HFvlRd8Tx6q6fE8YQcHNVXAkiY9q6d+xo0rKwT38xVqr7ZD0u0iPPkUL64lIZbqBAz+" +
		"scqKmlzm8FDrypNC9Yjc8fPOLn9FX9KSYvKTr4rvx3iSIlTJabIQwj2ICCR/oLxBA=="
	for _, test := range []struct{ name, token, want string }{
		{"post-vanilla", "", "SignedHeaders=host;x-amz-date, Signature=5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b"},
		{"post-sts-header-before", token, "SignedHeaders=host;x-amz-date;x-amz-security-token, Signature=85d96828115b5dc0cfc3bd16ad9e210dd772bbebba041836c64533a82be05ead"},
	} {
		request, err := http.NewRequest(http.MethodPost, "https://example.amazonaws.com/", nil)
		if err != nil {
			t.Fatal(err)
		}
		by := example
		by.Token = test.token
		sigv4.Sign(request, nil, by, "us-east-1", "service", time.Date(2015, 8, 30, 12, 36, 0, 0, time.UTC))
		want := "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, " + test.want
		if got := request.Header.Get("Authorization"); got != want {
			t.Errorf("%s: got  %s\nwant %s", test.name, got, want)
		}
	}
}

// store is a parameter store behind TLS; it checks each signature by making it again from what came over the wire.
type store struct {
	t       *testing.T
	answers []string // "status body", the last one stays
	asked   atomic.Int32
	secret  string
}

func (s *store) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	count := int(s.asked.Add(1))
	body, err := io.ReadAll(r.Body)
	if err != nil {
		s.t.Error(err)
	}
	if !s.signed(r, body) {
		w.WriteHeader(http.StatusBadRequest)
		fmt.Fprint(w, `{"__type":"com.amazon.coral.service#InvalidSignatureException"}`)
		return
	}
	var wish struct {
		Name           string
		WithDecryption bool
	}
	if err := json.Unmarshal(body, &wish); err != nil || wish.Name != "/team/keys" || !wish.WithDecryption {
		s.t.Errorf("asked for %s", body)
	}
	if r.Header.Get("X-Amz-Target") != "AmazonSSM.GetParameter" {
		s.t.Errorf("target %q", r.Header.Get("X-Amz-Target"))
	}
	answer := s.answers[min(count, len(s.answers))-1]
	code, text, _ := strings.Cut(answer, " ")
	var status int
	if _, err := fmt.Sscan(code, &status); err != nil {
		s.t.Error(err)
	}
	w.WriteHeader(status)
	fmt.Fprint(w, text)
}

func (s *store) signed(r *http.Request, body []byte) bool {
	stamp, err := time.Parse("20060102T150405Z", r.Header.Get("X-Amz-Date"))
	if err != nil {
		return false
	}
	again := &http.Request{Method: r.Method, URL: &url.URL{Host: r.Host}, Header: http.Header{}}
	for _, name := range []string{"Content-Type", "X-Amz-Target"} {
		again.Header.Set(name, r.Header.Get(name))
	}
	by := sigv4.Credentials{AccessKeyID: "ASIAROLE", SecretAccessKey: s.secret, Token: "session"}
	sigv4.Sign(again, body, by, "eu-west-1", "ssm", stamp)
	return again.Header.Get("Authorization") == r.Header.Get("Authorization") && r.Header.Get("X-Amz-Security-Token") == "session"
}

func machine(t *testing.T, items map[string]string) *imds.Client {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// The machine's own clock may show anything.
		w.Header().Set("Date", time.Date(2026, 11, 21, 18, 0, 0, 0, time.UTC).Format(http.TimeFormat))
		text, found := items[r.URL.Path]
		switch {
		case r.URL.Path == "/latest/api/token":
			text = "token"
		case !found:
			w.WriteHeader(http.StatusNotFound)
			return
		}
		w.Header().Set("Content-Length", fmt.Sprint(len(text)))
		fmt.Fprint(w, text)
	}))
	t.Cleanup(server.Close)
	address, ok := server.Listener.Addr().(*net.TCPAddr)
	if !ok {
		t.Fatal("not TCP")
	}
	client := imds.New(imds.Endpoint{IP: [4]byte(address.IP.To4()), Port: address.Port})
	t.Cleanup(client.Close)
	return client
}

func TestKeys(t *testing.T) {
	holds := func(value string) string {
		text, err := json.Marshal(map[string]any{"Parameter": map[string]string{"Value": value}})
		if err != nil {
			t.Fatal(err)
		}
		return "200 " + string(text)
	}
	role := `{"Code":"Success","AccessKeyId":"ASIAROLE","SecretAccessKey":"secret","Token":"session"}`
	for _, test := range []struct {
		name    string
		role    string
		secret  string
		answers []string
		pause   time.Duration // 0: one that leaves no time for a second try
		want    string
		fails   string
		asked   int32
	}{
		{name: "two keys", role: role, answers: []string{holds(testKey + " a\n# b\n" + testKey + " c\n")}, want: testKey + " a|" + testKey + " c", asked: 1},
		{
			name: "busy first", role: role, want: testKey, asked: 4, pause: time.Millisecond,
			answers: []string{"500 {}", "400 {\"__type\":\"ThrottlingException\"}", "503 <html>", holds(testKey)},
		},
		{name: "not there", role: role, answers: []string{`400 {"__type":"ParameterNotFound"}`}, fails: "refused: ParameterNotFound", asked: 1},
		{name: "may not", role: role, answers: []string{`400 {"__type":"x#AccessDeniedException"}`}, fails: "refused: AccessDeniedException", asked: 1},
		{name: "a bad signature", role: role, secret: "another", fails: "refused: InvalidSignatureException", asked: 1},
		{name: "something else is in it", role: role, answers: []string{holds("hunter2")}, fails: "something else", asked: 1},
		{name: "no role", fails: "not found"},
		{name: "a role without credentials", role: `{"Code":"AssumeRoleUnauthorizedAccess"}`, fails: "AssumeRoleUnauthorizedAccess"},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := &store{t: t, answers: test.answers, secret: "secret"}
			if test.secret != "" {
				s.secret = test.secret
			}
			server := httptest.NewTLSServer(s)
			defer server.Close()
			items := map[string]string{"/latest/meta-data/placement/region": "eu-west-1", "/latest/meta-data/services/domain": "amazonaws.com"}
			if test.role != "" {
				items[rolesPath], items[rolesPath+"web"] = "web\n", test.role
			}
			// The server's client trusts its certificate authority, and no other.
			a := &asker{machine: machine(t, items), client: server.Client(), endpoint: server.URL, pause: cmp.Or(test.pause, time.Hour)}
			keys, err := a.keys("/team/keys", time.Now().Add(inittest.LongEnough))
			if test.fails == "" && err != nil || test.fails != "" && (err == nil || !strings.Contains(err.Error(), test.fails)) {
				t.Fatalf("error %v, want %q", err, test.fails)
			}
			if err != nil && strings.Contains(err.Error(), "hunter2") {
				t.Errorf("told what the parameter holds: %v", err)
			}
			var got []string
			for _, key := range keys {
				got = append(got, key.String())
			}
			if strings.Join(got, "|") != test.want || s.asked.Load() != test.asked {
				t.Errorf("got %q after %d requests", got, s.asked.Load())
			}
		})
	}
}

// A server that somebody else vouches for gets no signature.
func TestTheCertificateIsChecked(t *testing.T) {
	s := &store{t: t, answers: []string{"200 {}"}, secret: "secret"}
	server := httptest.NewUnstartedServer(s)
	server.Config.ErrorLog = nil
	server.StartTLS()
	defer server.Close()
	items := map[string]string{
		"/latest/meta-data/placement/region": "eu-west-1", rolesPath: "web",
		rolesPath + "web": `{"AccessKeyId":"ASIAROLE","SecretAccessKey":"secret","Token":"session"}`,
	}
	a := &asker{machine: machine(t, items), client: &http.Client{}, endpoint: server.URL, pause: time.Hour}
	if _, err := a.keys("/team/keys", time.Now().Add(inittest.LongEnough)); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("error %v", err)
	}
	if s.asked.Load() != 0 {
		t.Error("it was asked all the same")
	}
}

func TestRun(t *testing.T) {
	for _, args := range [][]string{nil, {"-h"}, {"a", "b"}} {
		var stdout, stderr bytes.Buffer
		if status := run(args, &stdout, &stderr); status != 2 || !strings.Contains(stderr.String(), "usage") {
			t.Errorf("%q: status %d, %q", args, status, stderr.String())
		}
	}
}
