package main

import (
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
)

// answering is a transport with one answer.
type answering struct {
	status int
	body   string
}

func (a answering) RoundTrip(request *http.Request) (*http.Response, error) {
	return &http.Response{StatusCode: a.status, Body: io.NopCloser(strings.NewReader(a.body)), Request: request}, nil
}

// FuzzAnswer feeds what SSM answers: an error says nothing of a parameter's value, and is final only for a refusal.
func FuzzAnswer(f *testing.F) {
	f.Add(200, `{"Parameter": {"Value": "ssh-ed25519 AAAA"}}`)
	f.Add(400, `{"__type": "com.amazonaws.ssm#ParameterNotFound"}`)
	f.Add(400, `{"__type": "ThrottlingException"}`)
	f.Add(503, `<html>`)
	f.Fuzz(func(t *testing.T, status int, body string) {
		request, err := http.NewRequest(http.MethodPost, "https://ssm.invalid/", nil)
		if err != nil {
			t.Fatal(err)
		}
		a := &asker{client: &http.Client{Transport: answering{status, body}}}
		value, err := a.send(request)
		if err == nil && status != http.StatusOK || err != nil && (value != "" || len(err.Error()) > 400) {
			t.Errorf("status %d: %q, %v", status, value, err)
		}
		if errors.Is(err, errFinal) && status != http.StatusBadRequest {
			t.Errorf("status %d is final", status)
		}
	})
}
