package secrets

import (
	"bytes"
	"testing"

	"instantenv/internal/secrets/secretstest"
)

// FuzzScan: whatever is on a disk, places lie within it, and a key behind it is found, where a line begins.
func FuzzScan(f *testing.F) {
	for _, seed := range []string{
		"-----BEGIN PRIVATE KEY-----\nMC4C", "LS0tLS1CRUdJTiBQUklWQVRFIEtFWS0tLS0t", "p\x00a\x00s\x00s\x00w\x00o\x00r\x00d\x00=\x001\x00",
		"https://a:b%40c@d/", "kind: Secret\nmetadata:\n data:\n", "AKIA0123456789ABCDEF", "\x30\x82\x01\x00\x02\x01\x00\x02\x82", "\xfe\xed\xfe\xed\x00\x00\x00\x02",
		"\x95\x01\x00\x04", "\x05\x02\x00\x00", "openssh-key-v1\x00\xff\xff\xff\xff", "PuTTY-User-Key-File-3:\nPrivate-Lines: 9", `{"token": "a\u002fb\/c%2Fd"}`, "'\"+'\\n\\\\n&#10;",
	} {
		f.Add([]byte(seed))
	}
	key := []byte("\n\n\x00\n" + "token " + secretstest.GitHubToken + "\n")
	matcher := NewMatcher(nil)
	f.Fuzz(func(t *testing.T, data []byte) {
		window := append(bytes.Clone(data), key...)
		found := false
		report := func(h Hit) {
			if h.Rule == "" || h.Detail == "" || h.Offset < 0 || h.Offset >= int64(len(window)) {
				t.Fatalf("%+v in %d bytes", h, len(window))
			}
			found = found || h.Offset == int64(len(data)+len("\n\n\x00\ntoken "))
		}
		matcher.search(window, 0, len(window), 0, report)
		searchBlocks(window, 0, len(window), report)
		if !found {
			t.Errorf("the token behind %q was not found", data)
		}
	})
}
