package main

import (
	"errors"
	"fmt"
	"os"

	"instantenv/init/internal/json"
)

const configFile = "/etc/instant-init.json"

// A config is what the image says about itself.
type config struct {
	LoginUser string // login_user
	SSHD      string // sshd
	SSMKeys   string // ssm_keys: the SSM parameter that holds SSH keys, "" for none

	// Files that sshd is started from, in the order in which it needs them.
	ReadWhole []string // read_whole: of these it needs nearly everything
	ReadHeads []string // read_heads: of these it needs the beginning
}

// loadConfig reads the file; without one, the defaults hold. A key that is not known is an error: the file is baked
// together with this program, so it can only be a slip.
func loadConfig(path string) (config, error) {
	settings := config{LoginUser: "ec2-user", SSHD: defaultSSHD}
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

func (c *config) parse(text []byte) error {
	document, err := json.Parse(text)
	if err != nil {
		return err
	}
	fields, ok := document.(map[string]any)
	if !ok {
		return errors.New("not an object")
	}
	for name, value := range fields {
		switch name {
		case "login_user":
			c.LoginUser, ok = value.(string)
		case "sshd":
			c.SSHD, ok = value.(string)
		case "ssm_keys":
			c.SSMKeys, ok = value.(string)
		case "read_whole":
			c.ReadWhole, ok = texts(value)
		case "read_heads":
			c.ReadHeads, ok = texts(value)
		default:
			return fmt.Errorf("unknown field %q", name)
		}
		if !ok {
			return fmt.Errorf("%s is of the wrong kind", name)
		}
	}
	return nil
}
