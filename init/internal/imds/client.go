// Package imds is a client of EC2's instance metadata service, version 2: a session token first, then items
// over the same connection. It is built for the first second of a machine's life, when the network may not be
// there yet: connection errors are retried every few tens of milliseconds.
package imds

import (
	"errors"
	"fmt"
	"time"
)

// Default is the service's address on EC2.
var Default = Endpoint{[4]byte{169, 254, 169, 254}, 80}

// Pauses between tries: quick while a machine starts, then sparing (EC2 allows 1024 packets/s).
const (
	quickPause = 25 * time.Millisecond
	quickTime  = 10 * time.Second
	slowPause  = 500 * time.Millisecond
)

// tokenSeconds is the longest life that a token can have.
const tokenSeconds = "21600"

// Final answers: asking again would not help.
var (
	ErrNotFound  = errors.New("not found")
	ErrForbidden = errors.New("access to the metadata service is turned off")
)

// A Client is not safe for use by two goroutines at once.
type Client struct {
	// OnConnect and OnToken, when set, are called at the first connection and the first token.
	OnConnect, OnToken func()

	endpoint   Endpoint
	connection *connection
	token      string
	date       time.Time
	failing    time.Time     // when the first of the failures since the last answer was
	patience   time.Duration // for one answer
}

// New returns a client; it does not connect yet.
func New(endpoint Endpoint) *Client { return &Client{endpoint: endpoint, patience: transferTimeout} }

// Date is the time by the service's clock when it sent its latest answer, to the second; the zero time when it
// did not say. EC2 does (Date, RFC 9110 section 6.6.1), whatever the machine's own clock shows.
func (c *Client) Date() time.Time { return c.date }

// Close drops the kept-alive connection. The client can be used again.
func (c *Client) Close() {
	if c.connection != nil {
		c.connection.close()
		c.connection = nil
	}
}

// Get returns the body at a path such as /latest/meta-data/instance-id. It tries at least once, and until the
// deadline; ErrNotFound and ErrForbidden come at once.
func (c *Client) Get(path string, deadline time.Time) ([]byte, error) {
	started := time.Now()
	for {
		body, err := c.try(path)
		if err == nil || errors.Is(err, ErrNotFound) || errors.Is(err, ErrForbidden) {
			c.failing = time.Time{}
			return body, wrap(path, err)
		}
		if !time.Now().Before(deadline) {
			return nil, fmt.Errorf("metadata %s: no answer in %s: %w", path, time.Since(started).Round(time.Second), err)
		}
		// Over many calls: whoever asks again and again does not get a quick start each time.
		if c.failing.IsZero() {
			c.failing = started
		}
		pause := quickPause
		if time.Since(c.failing) > quickTime {
			pause = slowPause
		}
		time.Sleep(pause)
	}
}

func wrap(path string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("metadata %s: %w", path, err)
}

// errUnauthorized is a token that the service does not take, for example after a restore from a snapshot.
var errUnauthorized = errors.New("the session token was refused")

// try asks once; one refused token is replaced at once.
func (c *Client) try(path string) ([]byte, error) {
	body, err := c.get(path)
	if errors.Is(err, errUnauthorized) {
		body, err = c.get(path)
	}
	return body, err
}

func (c *Client) get(path string) ([]byte, error) {
	if c.token == "" {
		token, err := c.exchange("PUT", "/latest/api/token", "X-aws-ec2-metadata-token-ttl-seconds: "+tokenSeconds+"\r\n")
		if errors.Is(err, ErrNotFound) {
			// Of the token, not of the item: a service that is not set up yet, so no final answer.
			return nil, errors.New("session token: not found")
		}
		if err != nil {
			return nil, fmt.Errorf("session token: %w", err)
		}
		if !usable(token) {
			return nil, fmt.Errorf("session token: not one: %.80q", token)
		}
		c.token = string(token)
		once(&c.OnToken)
	}
	body, err := c.exchange("GET", path, "X-aws-ec2-metadata-token: "+c.token+"\r\n")
	if errors.Is(err, errUnauthorized) {
		c.token = ""
	}
	return body, err
}

func (c *Client) exchange(method, path, header string) ([]byte, error) {
	if c.connection == nil {
		connection, err := dial(c.endpoint)
		if err != nil {
			return nil, err
		}
		c.connection = connection
		once(&c.OnConnect)
	}
	answer, err := c.connection.roundTrip(method, path, header, c.patience)
	if err != nil || answer.last {
		c.Close()
	}
	if errors.Is(err, errTooLate) {
		// A service that is slow for everybody would never be heard with the same patience again.
		c.patience = min(2*c.patience, patienceMost)
	}
	if err != nil {
		return nil, err
	}
	c.date = answer.date
	switch answer.status {
	case 200:
		return answer.body, nil
	case 401:
		return nil, errUnauthorized
	case 403:
		return nil, ErrForbidden
	case 404:
		return nil, ErrNotFound
	}
	return nil, fmt.Errorf("status %d", answer.status)
}

// usable tells whether a token can go into a header: printable ASCII, and some of it.
func usable(token []byte) bool {
	for _, c := range token {
		if c <= ' ' || c > '~' {
			return false
		}
	}
	return len(token) > 0
}

func once(hook *func()) {
	if *hook != nil {
		(*hook)()
		*hook = nil
	}
}
