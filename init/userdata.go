package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"instantenv/init/internal/imds"
)

const (
	userDataPath = "/latest/user-data"
	// longest is a year: a larger number is more likely a slip than a wish.
	longest = 365 * 24 * time.Hour
)

// fetchTTL returns the machine's time limit, or 0 when user data has none.
func fetchTTL(client *imds.Client, deadline time.Time) (time.Duration, error) {
	text, err := client.Get(userDataPath, deadline)
	if errors.Is(err, imds.ErrNotFound) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	return parseTTL(text)
}

// parseTTL reads {"instant-env": {"ttl_s": 3600}} and ignores keys beside it. User data that is not a JSON object is
// for somebody else.
func parseTTL(text []byte) (time.Duration, error) {
	if text = bytes.TrimSpace(text); len(text) == 0 || text[0] != '{' {
		return 0, nil
	}
	var data struct {
		InstantEnv struct {
			TTL *int64 `json:"ttl_s"`
		} `json:"instant-env"`
	}
	if err := json.Unmarshal(text, &data); err != nil {
		return 0, fmt.Errorf("user data: %w", err)
	}
	seconds := data.InstantEnv.TTL
	if seconds == nil {
		return 0, nil
	}
	if *seconds < 1 || *seconds > int64(longest/time.Second) {
		return 0, fmt.Errorf("user data: ttl_s of %d is out of range", *seconds)
	}
	return time.Duration(*seconds) * time.Second, nil
}
