package json

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"unicode/utf8"
)

var documents = []string{
	`{}`, `[]`, `null`, `true`, `false`, `0`, `-0`, `12`, `-1.5e+10`, `1E3`, `1e999`, `123456789012345678901234567890`, `""`, ` { "a" : [ 1 , "b" , null ] } `,
	`{"instant-env": {"ttl_s": 3600, "ssh_keys": ["ssh-ed25519 AAAA a"], "mounts": [{"device": "/dev/sdf"}]}}`,
	`"\"\\\/\b\f\n\r\t\u00e9\ud83d\ude00"`, `"\ud83d"`, `"\ud83dx"`, `"\ud83d\u0041"`, `"\ude00\ud83d"`, `"ü€😀"`,
	``, ` `, `{`, `[`, `"`, `"\`, `"\u12`, `"\ud83d\u12`, `"\x"`, "\"\n\"", `01`, `1.`, `.5`, `-`, `1e`, `1e+`, `+1`,
	`nul`, `nulll`, `True`, `{"a"}`, `{"a":}`, `{"a":1,}`, `{,}`, `{"a":1 "b":2}`, `{1:2}`, `[1,]`, `[,1]`, `[1 2]`,
	`[1]]`, `{}{}`, `1 2`, "\"\x00\"", "\x00", "\"\x7f\"", "{\"a\":1}\x00", "\ufeff{}", `"\u+123"`, `"\u 12a"`,
}

// same compares with encoding/json, but for the two things in which Parse is stricter by intent.
func same(t *testing.T, document []byte) {
	t.Helper()
	got, err := Parse(document)
	var want any
	wantError := json.Unmarshal(document, &want)
	if err != nil && (strings.Contains(err.Error(), "twice") || !utf8.Valid(document) || strings.Contains(err.Error(), "too deep")) {
		return
	}
	if (err != nil) != (wantError != nil) {
		t.Fatalf("%q: got %v, encoding/json says %v", document, err, wantError)
	}
	if err == nil && !reflect.DeepEqual(got, want) {
		t.Fatalf("%q: got %#v, encoding/json says %#v", document, got, want)
	}
}

func TestParseAgreesWithEncodingJSON(t *testing.T) {
	for _, document := range documents {
		same(t, []byte(document))
	}
}

func FuzzParse(f *testing.F) {
	for _, document := range documents {
		f.Add([]byte(document))
	}
	f.Fuzz(func(t *testing.T, document []byte) {
		same(t, document)
	})
}

func TestParseIsStrict(t *testing.T) {
	for document, want := range map[string]string{
		`{"ttl_s": 1, "ttl_s": 2}`: `JSON, byte 20: "ttl_s" is there twice`,
		"\"\xff\"":                 "JSON, byte 1: not UTF-8",
		`{"a": tru}`:               "JSON, byte 6: unexpected 't'",
		`{"a": 1`:                  "JSON, byte 7: it ends too early",
		`{} x`:                     "JSON, byte 3: more text after the end",
		strings.Repeat("[", 1<<20): "JSON, byte 101: nested too deep",
	} {
		if _, err := Parse([]byte(document)); err == nil || err.Error() != want {
			t.Errorf("%.30q: got %v, want %s", document, err, want)
		}
	}
}

func TestAppendTextIsReadBack(t *testing.T) {
	for _, content := range []string{"", "plain", "quote\" back\\ line\n nul\x00 del\x7f", "ü€😀", "not\xffutf8"} {
		written := AppendText(nil, content)
		var read string
		if err := json.Unmarshal(written, &read); err != nil || read != strings.ToValidUTF8(content, "\ufffd") {
			t.Errorf("%q is written as %s, read as %q, %v", content, written, read, err)
		}
	}
}
