package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
)

const configFile = "/etc/instant-init.json"

// A config is what the image says about itself.
type config struct {
	LoginUser string `json:"login_user"`
	SSHD      string `json:"sshd"`
}

// loadConfig reads the file; without one, the defaults hold. A key that is not known is an error: the file is baked
// together with this program, so it can only be a slip.
func loadConfig(path string) (config, error) {
	settings := config{LoginUser: "ec2-user", SSHD: "/usr/sbin/sshd"}
	text, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return settings, nil
	}
	if err != nil {
		return settings, err
	}
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&settings); err != nil {
		return settings, fmt.Errorf("%s: %w", path, err)
	}
	return settings, nil
}
