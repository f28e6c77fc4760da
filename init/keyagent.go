package main

import (
	"fmt"
	"os"
	"strings"
	"syscall"
	"time"

	"instantenv/init/internal/imds"
)

// keyAgent does what an init of another kind needs from us for a login, and returns the exit status.
func keyAgent(log *logger) int {
	marks := newTimeline(bootTime, false)
	marks.mark("init_start")
	client := imds.New(imds.Default)
	defer client.Close()
	client.OnConnect = func() { marks.mark("network_up") }
	client.OnToken = func() { marks.mark("imds_token") }
	if err := prepareLogin(client, marks, log); err != nil {
		log.sayf("%v", err)
		return 1
	}
	if err := marks.write(timelineFile); err != nil {
		log.sayf("cannot write the timeline: %v", err)
	}
	if err := notifyReady(os.Getenv("NOTIFY_SOCKET")); err != nil {
		log.sayf("cannot tell systemd: %v", err)
	}
	log.sayf("timeline %s", marks.json())
	data, err := fetchUserData(client, time.Now().Add(metadataLimit), log)
	if err == nil && data.TTL > 0 {
		err = armSystemdTimer(data.TTL)
	}
	if err != nil {
		log.sayf("time limit: %v", err)
		return 1
	}
	return 0
}

func prepareLogin(client *imds.Client, marks *timeline, log *logger) error {
	hostKeys := make(chan error, 1)
	go func() { hostKeys <- ensureHostKeys(sshDirectory, marks, log) }()
	settings, err := loadConfig(configFile)
	if err != nil {
		return err
	}
	user, err := findAccount(passwdFile, settings.LoginUser)
	if err != nil {
		return err
	}
	if err := installKey(client, user, time.Now().Add(metadataLimit), marks, log); err != nil {
		return err
	}
	return <-hostKeys
}

// armSystemdTimer has systemd power the machine off when it has been up for the given time. A timer outlives this
// process, and it is seen in `systemctl list-timers`.
func armSystemdTimer(ttl time.Duration) error {
	argv := []string{
		"/usr/bin/systemd-run", "--quiet", "--no-block", "--unit=instant-init-ttl",
		fmt.Sprintf("--on-boot=%d", int64(ttl/time.Second)), "--timer-property=AccuracySec=1s",
		"/usr/bin/systemctl", "poweroff",
	}
	process, err := os.StartProcess(argv[0], argv, &os.ProcAttr{Files: []*os.File{nil, os.Stderr, os.Stderr}})
	if err != nil {
		return err
	}
	state, err := process.Wait()
	if err == nil && !state.Success() {
		err = fmt.Errorf("%s: %s", argv[0], state)
	}
	return err
}

// notifyReady is sd_notify(3) with READY=1; without a socket it does nothing.
func notifyReady(socket string) error {
	if socket == "" {
		return nil
	}
	// A leading @ stands for the null byte of an abstract socket, in systemd's variable and in package syscall alike.
	if !strings.HasPrefix(socket, "/") && !strings.HasPrefix(socket, "@") {
		return fmt.Errorf("NOTIFY_SOCKET=%q", socket)
	}
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_DGRAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer syscall.Close(fd)
	return syscall.Sendto(fd, []byte("READY=1"), syscall.MSG_NOSIGNAL, &syscall.SockaddrUnix{Name: socket})
}
