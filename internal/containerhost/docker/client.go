// Package docker speaks the part of the Docker Engine API that one container needs, over the daemon's socket.
//
// Source: https://docs.docker.com/reference/api/engine/version/v1.41/ (Debian 12's docker.io is 20.10, whose API this is)
// and the version history beside it: nothing that is used here has changed up to 1.52.
package docker

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// Socket is where the daemon listens by default.
const Socket = "/var/run/docker.sock"

// Limits: of one call that the daemon answers from memory, and of an answer's size.
const (
	callLimit   = 30 * time.Second
	answerLimit = 8 << 20
)

// An Error is the daemon's refusal.
type Error struct {
	Status  int
	Message string
}

func (e *Error) Error() string { return fmt.Sprintf("docker: %s (status %d)", e.Message, e.Status) }

// IsNotFound reports whether the daemon says that the object is not there.
func IsNotFound(err error) bool {
	var refusal *Error
	return errors.As(err, &refusal) && refusal.Status == http.StatusNotFound
}

// A Dialer connects to the daemon.
type Dialer func(ctx context.Context) (net.Conn, error)

// A Client talks to one daemon.
type Client struct {
	http *http.Client
}

// New connects through a socket of the file system.
func New(socket string) *Client {
	return Over(func(ctx context.Context) (net.Conn, error) {
		var dialer net.Dialer
		return dialer.DialContext(ctx, "unix", socket)
	})
}

// Over connects by dial.
func Over(dial Dialer) *Client {
	transport := &http.Transport{
		DialContext:       func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) },
		DisableKeepAlives: true, // a daemon that was restarted leaves dead connections behind
	}
	return &Client{http: &http.Client{Transport: transport}}
}

// Ping asks whether the daemon is there; its answer is the API's version.
func (c *Client) Ping(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	answer, err := c.do(ctx, http.MethodGet, "/_ping", nil, nil)
	if err != nil {
		return "", err
	}
	defer answer.Body.Close()
	version := answer.Header.Get("Api-Version")
	if version == "" {
		return "", errors.New("docker: the answer to /_ping has no Api-Version")
	}
	return version, nil
}

// do sends one request and turns a refusal into an Error. The caller closes the answer's body.
func (c *Client) do(
	ctx context.Context, method, path string, body any, headers map[string]string,
) (*http.Response, error) {
	var content io.Reader
	if body != nil {
		text, err := json.Marshal(body)
		if err != nil {
			return nil, err
		}
		content = bytes.NewReader(text)
	}
	request, err := http.NewRequestWithContext(ctx, method, "http://docker"+path, content)
	if err != nil {
		return nil, err
	}
	if body != nil {
		request.Header.Set("Content-Type", "application/json")
	}
	for name, value := range headers {
		request.Header.Set(name, value)
	}
	answer, err := c.http.Do(request)
	if err != nil {
		return nil, fmt.Errorf("docker: %s %s: %w", method, strings.SplitN(path, "?", 2)[0], errors.Unwrap(err))
	}
	if answer.StatusCode >= http.StatusBadRequest {
		defer answer.Body.Close()
		text, _ := io.ReadAll(io.LimitReader(answer.Body, answerLimit))
		var refusal struct{ Message string }
		if json.Unmarshal(text, &refusal) != nil || refusal.Message == "" {
			refusal.Message = strings.TrimSpace(string(text))
		}
		return nil, &Error{answer.StatusCode, refusal.Message}
	}
	return answer, nil
}

// call sends a request of the daemon's own version within limit and decodes the answer into result, if there is one.
func (c *Client) call(
	ctx context.Context, limit time.Duration, method, path string, query url.Values, body, result any,
) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	answer, err := c.versioned(ctx, method, path, query, body, nil)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if result == nil {
		return nil
	}
	if err := json.NewDecoder(io.LimitReader(answer.Body, answerLimit)).Decode(result); err != nil {
		return fmt.Errorf("docker: the answer to %s %s: %w", method, path, err)
	}
	return nil
}

// versioned asks by the daemon's own version: paths without one are deprecated, and a daemon refuses those that are newer
// or much older than itself (29 refuses below 1.44).
func (c *Client) versioned(
	ctx context.Context, method, path string, query url.Values, body any, headers map[string]string,
) (*http.Response, error) {
	version, err := c.Ping(ctx)
	if err != nil {
		return nil, err
	}
	if len(query) > 0 {
		path += "?" + query.Encode()
	}
	return c.do(ctx, method, "/v"+version+path, body, headers)
}

// filters encodes them as the API takes them: a map of lists, as JSON.
func filters(name string, values ...string) url.Values {
	text, err := json.Marshal(map[string][]string{name: values})
	if err != nil {
		panic(err) // strings always encode
	}
	return url.Values{"filters": {string(text)}}
}
