package boot

import (
	"fmt"

	"instantenv/init/internal/access"
	"instantenv/init/internal/config"
)

// An image is the configuration on the root file system. It is read while the other file systems are mounted.
type image struct {
	settings config.Config
	user     access.Account
	early    *earlyServer // the sshd that runs already; nil: none
	lease    fileLease    // on what sshd reads before its host keys
	noLease  error        // why there is none
}

func (i *image) read() (err error) {
	if i.settings, err = config.Load(config.File); err != nil {
		return err
	}
	i.lease, i.noLease = i.leaseConfiguration()
	i.user, err = access.FindAccount(access.PasswdFile, i.settings.LoginUser)
	return err
}

// leaseConfiguration takes the lease for the system's sshd; another server may have its configuration elsewhere.
func (i *image) leaseConfiguration() (fileLease, error) {
	if i.settings.SSHD != config.DefaultSSHD {
		return fileLease{}, fmt.Errorf("%s is not %s", i.settings.SSHD, config.DefaultSSHD)
	}
	if i.early != nil {
		return i.early.lease, nil
	}
	return takeLease(SSHDConfiguration)
}
