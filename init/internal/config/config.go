// Package config reads what the image says about the machine.
package config

import (
	"errors"
	"fmt"
	"os"

	"instantenv/init/internal/json"
)

// File is baked into the image together with this program.
const File = "/etc/instant-init.json"

// DefaultSSHD is the system's own server.
const DefaultSSHD = "/usr/sbin/sshd"

// A Config is what the image says about itself.
type Config struct {
	LoginUser string // login_user
	SSHD      string // sshd
	SSMKeys   string // ssm_keys: the SSM parameter that holds SSH keys, "" for none
}

// Load reads the file; without one it returns the defaults. An unknown key is an error: the file is baked together with
// this program, so it can only be a typing error.
func Load(path string) (Config, error) {
	settings := Config{LoginUser: "ec2-user", SSHD: DefaultSSHD}
	text, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return settings, nil
	}
	if err != nil {
		return settings, err
	}
	if err := settings.parse(text); err != nil {
		return settings, fmt.Errorf("%s: %w", path, err)
	}
	return settings, nil
}

func (c *Config) parse(text []byte) error {
	document, err := json.Parse(text)
	if err != nil {
		return err
	}
	fields, ok := document.(map[string]any)
	if !ok {
		return errors.New("not an object")
	}
	for name, value := range fields {
		into, known := map[string]*string{"login_user": &c.LoginUser, "sshd": &c.SSHD, "ssm_keys": &c.SSMKeys}[name]
		if !known {
			return fmt.Errorf("unknown field %q", name)
		}
		if *into, ok = value.(string); !ok {
			return fmt.Errorf("%s is not a string", name)
		}
	}
	return nil
}
