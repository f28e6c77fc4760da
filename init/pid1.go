package main

import (
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"sync"
	"syscall"
	"time"

	"instantenv/init/internal/imds"
	"instantenv/init/internal/kmod"
)

// acpiTinyPowerButton is the signal that a kernel with CONFIG_ACPI_TINY_POWER_BUTTON sends by default.
const acpiTinyPowerButton = syscall.Signal(38)

// Time limits of a boot.
const (
	networkLimit = 120 * time.Second
	// fatalPause leaves the cause on the console long enough for EC2 to record it.
	fatalPause = 10 * time.Second
)

// A machine is what process 1 looks after.
type machine struct {
	log       *logger
	marks     *timeline
	processes *reaper
	modules   func() (*kmod.Tree, error)
	gate      chan struct{} // closed when the key is there: sshd may accept connections
	serving   chan struct{} // closed when sshd accepts them for the first time
	ending    chan ending   // takes how and why the machine goes down; the first one counts
}

// boot does not return.
func boot() {
	// Signals first: what Go does with an early SIGHUP would end process 1, and the kernel would panic.
	children := make(chan os.Signal, 1)
	signal.Notify(children, syscall.SIGCHLD)
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGPWR, acpiTinyPowerButton,
		syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGALRM, syscall.SIGPIPE)

	m := &machine{
		log:       &logger{console: os.Stderr},
		marks:     newTimeline(bootTime, true),
		processes: newReaper(),
		modules:   sync.OnceValues(openModules),
		gate:      make(chan struct{}),
		serving:   make(chan struct{}),
		ending:    make(chan ending, 1),
	}
	m.marks.mark("init_start")
	m.spawn("reaper", func() error {
		for range children {
			m.processes.reap()
		}
		return nil
	})
	m.spawn("signals", func() error {
		for s := range signals {
			switch s {
			case syscall.SIGTERM, syscall.SIGPWR, acpiTinyPowerButton:
				m.powerOff("signal: " + s.String())
			case syscall.SIGINT:
				m.goDown(ending{reason: "Ctrl-Alt-Del", restart: true})
			default:
				m.log.notef("ignoring signal: %v", s)
			}
		}
		return nil
	})
	m.spawn("boot", m.bringUp)
	m.shutDown(<-m.ending)
}

// bringUp takes the machine from nothing to a login.
func (m *machine) bringUp() error {
	mounted := m.marks.stage("mounts")
	if err := mountAll(mounts); err != nil {
		return err
	}
	m.log.open()
	if err := prepareSystem(); err != nil {
		return err
	}
	mounted()
	m.marks.mark("mounted")

	network := m.async("network", m.bringUpNetwork)
	hostKeys := m.async("host keys", func() error { return ensureHostKeys(sshDirectory, m.marks, m.log) })
	m.spawn("power button", m.watchPowerButton)
	settings, err := loadConfig(configFile)
	if err != nil {
		return err
	}
	user, err := findAccount(passwdFile, settings.LoginUser)
	if err != nil {
		return err
	}
	if err := <-hostKeys; err != nil {
		return err
	}
	// sshd takes longer to load than the key takes to come, so it starts now, and waits at the gate.
	m.spawn("sshd", func() error { return m.superviseSSHD(settings.SSHD) })

	if err := <-network; err != nil {
		return err
	}
	metadata := imds.New(imds.Default)
	metadata.OnToken = func() { m.marks.mark("imds_token") }
	admission := &admission{client: metadata, user: user, patience: bootPatience, held: heldKeys, marks: m.marks, log: m.log}
	keyInstalled := m.marks.stage("key")
	if err := admission.beforeSSHD(); err != nil {
		return err
	}
	keyInstalled()
	close(m.gate)
	return m.finishBoot(admission, settings)
}

// finishBoot is what can wait until sshd serves.
func (m *machine) finishBoot(admission *admission, settings config) error {
	<-m.serving
	m.tellTimeline("sshd_listening")
	// The new host keys and authorized_keys are whole on the disk already; now their names are, too.
	m.spawn("sync", func() error {
		syscall.Sync()
		return nil
	})
	data := admission.afterSSHD()
	if settings.SSMKeys != "" {
		m.spawn("SSM parameter", func() error {
			admission.admitParameter(ssmProgram, settings.SSMKeys, m.run)
			return nil
		})
	}
	lifetime := newLifetime(data, admission.client.Date(), m.log)
	m.spawn("tag of the time limit", func() error {
		lifetime.watch(admission.client)
		return nil
	})
	m.powerOff("its time is up: " + lifetime.await(time.Sleep))
	return nil
}

// tellTimeline writes it down as it is at a mark.
func (m *machine) tellTimeline(mark string) {
	read, err := rootReads()
	if err == nil {
		m.marks.markReads(mark, read)
		err = m.marks.write(timelineFile)
	}
	if err != nil {
		m.log.sayf("timeline: %v", err)
	}
	m.log.sayf("timeline %s", m.marks.json())
}

// spawn runs work beside everything else. An error or a panic of it is fatal for the machine.
func (m *machine) spawn(what string, work func() error) {
	go func() {
		if err := m.guarded(what, work); err != nil {
			m.fatal(err)
		}
	}()
}

// async runs work beside everything else, as a stage of the timeline, and delivers its error.
func (m *machine) async(what string, work func() error) <-chan error {
	done := make(chan error, 1)
	ended := m.marks.stage(what)
	go func() {
		err := m.guarded(what, work)
		if err == nil {
			ended()
		}
		done <- err
	}()
	return done
}

func (m *machine) guarded(what string, work func() error) (err error) {
	defer func() {
		if cause := recover(); cause != nil {
			err = fmt.Errorf("%s: panic: %v\n%s", what, cause, debug.Stack())
		}
	}()
	if err := work(); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

func (m *machine) fatal(cause error) {
	m.log.sayf("fatal: %v", cause)
	m.log.sayf("powering off in %s", fatalPause)
	time.Sleep(fatalPause)
	m.powerOff("a fatal error")
}

// An ending is how the machine goes down: for good, or to start again.
type ending struct {
	reason  string
	restart bool
}

// powerOff asks for the shutdown and returns.
func (m *machine) powerOff(reason string) { m.goDown(ending{reason: reason}) }

func (m *machine) goDown(how ending) {
	select {
	case m.ending <- how:
	default: // it is going down already
	}
}

// openModules reads the index of the running kernel's modules.
func openModules() (*kmod.Tree, error) {
	release, err := readLine("/proc/sys/kernel/osrelease")
	if err != nil {
		return nil, err
	}
	return kmod.Open("/lib/modules/" + release)
}
