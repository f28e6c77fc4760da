package main

import "fmt"

// An image is what the root file system says of the machine. It is read while the others are mounted.
type image struct {
	settings config
	user     account
	early    *earlyServer // the sshd that runs already; nil: none
	held     hold         // on what sshd reads before its host keys
	notHeld  error        // why it is not held
}

func (i *image) read() (err error) {
	if i.settings, err = loadConfig(configFile); err != nil {
		return err
	}
	i.held, i.notHeld = i.holdConfiguration()
	i.user, err = findAccount(passwdFile, i.settings.LoginUser)
	return err
}

// holdConfiguration is for the system's sshd; another one may have its own elsewhere.
func (i *image) holdConfiguration() (hold, error) {
	if i.settings.SSHD != defaultSSHD {
		return hold{}, fmt.Errorf("%s is not %s", i.settings.SSHD, defaultSSHD)
	}
	if i.early != nil {
		return i.early.held, nil
	}
	return holdFile(sshdConfiguration)
}
