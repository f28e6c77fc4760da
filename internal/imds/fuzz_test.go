package imds

import (
	"bytes"
	"strings"
	"testing"
	"time"
)

// FuzzHTTP feeds what a guest sends on a connection: each request has one answer, and what is no request ends it.
func FuzzHTTP(f *testing.F) {
	f.Add([]byte("GET /latest/meta-data/ HTTP/1.1\r\nHost: x\r\n\r\n"))
	f.Add([]byte("PUT /latest/api/token HTTP/1.1\r\nX-aws-ec2-metadata-token-ttl-seconds: 60\r\nContent-Length: 2\r\n\r\nab"))
	f.Add([]byte("GET /%6c%61test HTTP/1.0\r\n\r\nGET http://[ HTTP/1.1\r\n\r\n"))
	f.Add([]byte("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabc"))
	f.Fuzz(func(t *testing.T, data []byte) {
		var out bytes.Buffer
		requests := 0
		newConnection(bytes.NewReader(data), &out).serve(func(*request) response {
			requests++
			return response{status: 200, contentType: "text/plain", body: []byte("x")}
		})
		answers := bytes.Count(out.Bytes(), []byte("HTTP/1."))
		if answers < requests || answers > requests+1 {
			t.Errorf("%d requests, %d answers: %q", requests, answers, out.Bytes())
		}
	})
}

// FuzzMetadata feeds the file that the server writes for netd: what is read can be looked up without a fault.
func FuzzMetadata(f *testing.F) {
	const head = `{"version": 1, "http_tokens": "required", "http_endpoint": "enabled", "token_key": "00112233445566778899aabbccddeeff", `
	f.Add([]byte(head+`"tree": {"instance-id": "i-1", "network": {"interfaces": {}}}}`), "network/interfaces")
	f.Add([]byte(head+`"tree": {"public-keys": {"0": {"openssh-key": "a"}}}, "document": {"a": "b"}, "user_data": "eA=="}`), "public-keys/0/openssh-key")
	f.Add([]byte(head+`"tree": {}, "instance_tags": true, "tags": {"a": "b"}}`), "tags/instance/a")
	f.Add([]byte(`{"tree": [null]}`), "")
	f.Fuzz(func(t *testing.T, data []byte, path string) {
		m, err := parseMetadata(data)
		if err != nil {
			return
		}
		parts := strings.Split(path, "/")
		m.metaData("latest", parts, time.Unix(1_700_000_000, 0))
		m.dynamic(parts)
		m.top("latest")
		token := newToken(m.tokenKey, time.Unix(1_700_000_100, 0))
		if !validToken(m.tokenKey, token, time.Unix(1_700_000_000, 0)) || validToken(m.tokenKey, path, time.Unix(1_700_000_000, 0)) {
			t.Errorf("the token %q or %q is judged wrongly", token, path)
		}
	})
}
