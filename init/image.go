package main

import (
	"fmt"
	"syscall"
)

// An image is what the root file system says of the machine. It is read while the others are mounted.
type image struct {
	settings config
	user     account
	early    *earlyServer // the sshd that runs already; nil: none
	held     hold         // on what sshd reads before its host keys
	notHeld  error        // why it is not held
}

// read has sshd's files on their way as soon as it knows of them.
func (i *image) read(ahead func(whole, heads []string)) (err error) {
	if i.settings, err = loadConfig(configFile); err != nil {
		return err
	}
	ahead(i.settings.ReadWhole, i.settings.ReadHeads)
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

// headSize is what is read of a library of which a start needs only parts: its beginning, in which the dynamic linker
// looks up symbols. On Debian 12 a start to the listening sshd read the least with this size (16.9 MB, where it was 18.0
// without reading ahead, 17.1 with 16 and 96 KiB and 18.0 with 256), by 274 requests in place of 315.
const headSize = 64 << 10

// wholeSize is more than any of the others has.
const wholeSize = 64 << 20

// readAhead has the kernel read files into its cache. A program that is being linked asks for one piece after the
// other, each time when it has the one before: on a disk that takes a while to answer, which is what a new EBS volume is
// for a block that nobody has read, these times add up. What is not there is left out.
func readAhead(whole, heads []string) {
	for _, path := range whole {
		readFile(path, wholeSize)
	}
	for _, path := range heads {
		readFile(path, headSize)
	}
}

func readFile(path string, size int) {
	file, err := syscall.Open(path, syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	defer syscall.Close(file)
	// It returns when the disk has been asked.
	_, _, _ = syscall.Syscall(syscall.SYS_READAHEAD, uintptr(file), 0, uintptr(size))
}
