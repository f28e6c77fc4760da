package main

import (
	"fmt"
	"os"
	"strings"
	"syscall"
	"time"

	"instantenv/init/internal/access"
	"instantenv/init/internal/boottime"
	"instantenv/init/internal/config"
	"instantenv/init/internal/imds"
	"instantenv/init/internal/logging"
	"instantenv/init/internal/network"
	"instantenv/init/internal/paths"
	"instantenv/init/internal/phases"
	"instantenv/init/internal/task"
	"instantenv/init/internal/timeline"
	"instantenv/init/internal/userdata"
	"instantenv/init/internal/volumes"
)

// Signals by which systemd, being process 1, powers the machine off in order, and at once (systemd(1): SIGRTMIN+4 and
// SIGRTMIN+14; the C library's SIGRTMIN is 34).
const (
	systemdPowerOff    = syscall.Signal(34 + 4)
	systemdPowerOffNow = syscall.Signal(34 + 14)
	// systemdPatience is more than the 90 s that systemd gives a service to stop.
	systemdPatience = 120 * time.Second
)

// keyAgent installs keys under another init, then enforces the machine's time limit. It returns only on failure, with the
// exit status.
func keyAgent(log *logging.Logger) int {
	if os.Geteuid() != 0 {
		log.Consolef("key-agent: permission denied: it needs to be root")
		return 1
	}
	marks := timeline.New(boottime.Now, false)
	marks.Mark("init_start")
	client := imds.New(imds.Default)
	client.OnConnect = func() { marks.Mark("network_up") }
	client.OnToken = func() { marks.Mark("imds_token") }
	settings, err := config.Load(config.File)
	if err != nil {
		log.Consolef("%v", err)
		return 1
	}
	admission, err := prepareLogin(client, settings.LoginUser, marks, log)
	if err != nil {
		log.Consolef("%v", err)
		return 1
	}
	if err := marks.Write(timeline.File); err != nil {
		log.Consolef("cannot write the timeline: %v", err)
	}
	if err := notifyReady(os.Getenv("NOTIFY_SOCKET")); err != nil {
		log.Consolef("cannot tell systemd: %v", err)
	}
	syscall.Sync() // see finishBoot
	log.Consolef("timeline %s", marks.JSON())
	if err := access.PrintHostKeys(paths.SSH, paths.Console); err != nil {
		log.Consolef("host keys: %v", err)
	}
	// cloud-init would have done it, or growpart from an initramfs.
	if _, err := volumes.Grow("/", nil, log); err != nil {
		log.Consolef("root volume: %v", err)
	}
	data := admission.AfterSSHD()
	if err := data.Apply(phases.Recorded, network.SetStaticName); err != nil {
		log.Consolef("user data: %v", err)
	}
	mounter := &volumes.Mounter{
		Log: log, Book: phases.Recorded, Account: admission.User.Find, Keys: admission.User,
		Tasks: &task.Group{Log: log, Marks: marks, Fatal: func(cause error) { log.Consolef("%v", cause) }},
		Run:   func(argv []string) error { return access.RunChild(argv, os.Stderr) },
	}
	mounter.Mount(data.Mounts)
	lifetime := userdata.NewLifetime(data, client.Date(), log)
	if settings.SSMKeys != "" {
		go admission.AdmitParameter(access.SSMProgram, settings.SSMKeys, access.RunChild)
	}
	go lifetime.Watch(client)
	log.Consolef("powering off: its time is up: %s", lifetime.Await(time.Sleep))
	return endBySystemd(log)
}

func prepareLogin(client *imds.Client, name string, marks *timeline.Timeline, log *logging.Logger) (*access.Admission, error) {
	hostKeys := make(chan error, 1)
	go func() {
		made, err := access.EnsureHostKeys(paths.SSH, marks)
		log.JournalLines(made)
		hostKeys <- err
	}()
	user, err := access.FindAccount(access.PasswdFile, name)
	if err != nil {
		return nil, err
	}
	admission := access.New(client, user, marks, log)
	if err := admission.BeforeSSHD(); err != nil {
		return nil, err
	}
	return admission, <-hostKeys
}

// endBySystemd powers the machine off, by force if its services do not stop in time.
func endBySystemd(log *logging.Logger) int {
	for _, signal := range []syscall.Signal{systemdPowerOff, systemdPowerOffNow} {
		if err := syscall.Kill(1, signal); err != nil {
			log.Consolef("%v", err)
		}
		time.Sleep(systemdPatience)
	}
	log.Consolef("systemd does not power the machine off")
	return 1
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
