// Package boot is process 1: it takes the machine from nothing to a login, composes what looks after it from then on,
// and decides when it goes down.
//
// sshd, the buttons, hibernation and fatal errors are files of this package and not packages: each waits for and changes
// most of the machine's state (gate, serving, loggedIn, grown, ending), so that a package of their own would be handed
// all of it.
package boot

import (
	"errors"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"instantenv/init/internal/access"
	"instantenv/init/internal/boottime"
	"instantenv/init/internal/config"
	"instantenv/init/internal/imds"
	"instantenv/init/internal/kmod"
	"instantenv/init/internal/logging"
	"instantenv/init/internal/mount"
	"instantenv/init/internal/network"
	"instantenv/init/internal/paths"
	"instantenv/init/internal/phases"
	"instantenv/init/internal/shutdown"
	"instantenv/init/internal/supervisor"
	"instantenv/init/internal/sysfs"
	"instantenv/init/internal/task"
	"instantenv/init/internal/timeline"
	"instantenv/init/internal/userdata"
	"instantenv/init/internal/volumes"
)

// acpiTinyPowerButton is the signal that a kernel with CONFIG_ACPI_TINY_POWER_BUTTON sends by default.
const acpiTinyPowerButton = syscall.Signal(38)

// runtimeHostKeys is where host keys are made when they cannot be in paths.SSH.
const runtimeHostKeys = paths.Runtime + "/ssh"

// servingLimit is how long the boot waits for a server that accepts connections. It is far more than sshd needs.
const servingLimit = time.Minute

// A machine is the state of process 1.
type machine struct {
	log       *logging.Logger
	marks     *timeline.Timeline
	tasks     *task.Group
	processes *supervisor.Reaper
	services  *supervisor.Supervisor
	network   *network.Network
	image     image
	modules   func() (*kmod.Tree, error)
	gate      chan struct{}        // closed when the key is there: sshd may accept connections
	serving   chan struct{}        // closed when sshd accepts them for the first time
	loggedIn  chan struct{}        // closed when somebody is in for the first time
	grown     chan struct{}        // closed when the root has its size, and swap its place
	ending    chan shutdown.Ending // takes how and why the machine goes down; the first one counts

	sshdOptions []string // more arguments of sshd; set before the host keys are there

	hooksMutex sync.Mutex
	hooks      []func() error // what to do when the machine wakes up
}

// Run is process 1. It does not return. early is nil when no sshd was started before Go's runtime.
func Run(early *EarlyStart) {
	// Signals first: what Go does with an early SIGHUP would end process 1, and the kernel would panic.
	children := make(chan os.Signal, 1)
	signal.Notify(children, syscall.SIGCHLD)
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGPWR, acpiTinyPowerButton,
		syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGALRM, syscall.SIGPIPE)

	m := &machine{
		log:       &logging.Logger{Console: os.Stderr},
		marks:     timeline.New(boottime.Now, true),
		processes: supervisor.NewReaper(),
		modules:   sync.OnceValues(openModules),
		gate:      make(chan struct{}),
		serving:   make(chan struct{}),
		loggedIn:  make(chan struct{}),
		grown:     make(chan struct{}),
		ending:    make(chan shutdown.Ending, 1),
	}
	m.tasks = &task.Group{Log: m.log, Marks: m.marks, Fatal: m.fatal}
	m.services = supervisor.New(supervisor.Config{
		Log: m.log, Tasks: m.tasks, Processes: m.processes, Cgroups: supervisor.ServiceCgroups, IsServing: m.isServing,
	})
	m.image.early = adoptEarly(early, m.processes)
	m.network = network.New(network.Config{
		Log: m.log, Marks: m.marks, Tasks: m.tasks, Modules: m.modules, Serving: m.serving,
	})
	m.onResume(m.network.Resumed)
	m.marks.Mark("init_start")
	m.tasks.Spawn("reaper", func() error {
		for range children {
			m.processes.Reap()
		}
		return nil
	})
	m.tasks.Spawn("signals", func() error {
		for s := range signals {
			switch s {
			case syscall.SIGTERM, syscall.SIGPWR, acpiTinyPowerButton:
				m.powerOff("signal: " + s.String())
			case syscall.SIGINT:
				m.goDown(shutdown.Ending{Reason: "Ctrl-Alt-Del", Restart: true})
			default:
				m.log.Journalf("ignoring signal: %v", s)
			}
		}
		return nil
	})
	m.tasks.Spawn("boot", m.bringUp)
	down := shutdown.Shutdown{Log: m.log, Processes: m.processes, StopServices: m.services.StopServices}
	down.Run(<-m.ending)
}

// bringUp takes the machine from nothing to a login.
func (m *machine) bringUp() error {
	mounted := m.marks.Stage("mounts")
	// The kernel's command line says rw; where it does not, this is the moment. A root that cannot be written
	// should still let somebody in who finds out why.
	readOnly := mount.RemountWritable("/")
	// The disk answers while the processor mounts, and making keys takes the other one as long.
	read := m.tasks.Async("image", m.image.read)
	told := make(chan struct{}) // closed when there is a log to tell it to, and memory to fall back on
	hostKeys := m.tasks.Async("host keys", func() error { return m.makeHostKeys(told) })
	if err := mount.All(mount.Table); err != nil {
		return err
	}
	networkUp := m.tasks.Async("network", m.network.BringUp)
	m.log.Open()
	close(told)
	if readOnly != nil {
		m.log.Consolef("the root stays read-only: %v", readOnly)
	}
	if err := prepareServer(); err != nil {
		m.log.Consolef("%v", err)
	}
	mounted()
	m.marks.Mark("mounted")

	if err := <-read; err != nil {
		return err
	}
	// sshd takes longer to load than anything here, so it comes first, and waits at the gate.
	if err := m.startSSHD(hostKeys); err != nil {
		return err
	}
	if err := prepareLogins(); err != nil {
		m.log.Consolef("%v", err)
	}
	m.tasks.Spawn("buttons", m.watchButtons)

	if err := <-networkUp; err != nil {
		return err
	}
	metadata := imds.New(imds.Default)
	metadata.OnToken = func() { m.marks.Mark("imds_token") }
	admission := access.New(metadata, m.image.user, m.marks, m.log)
	keyInstalled := m.marks.Stage("key")
	if err := admission.BeforeSSHD(); err != nil {
		return err
	}
	keyInstalled()
	close(m.gate)
	return m.finishBoot(admission, m.image.settings)
}

// finishBoot does what can wait until sshd serves.
func (m *machine) finishBoot(admission *access.Admission, settings config.Config) error {
	select {
	case <-m.serving:
		m.tellTimeline("sshd_listening")
	case <-time.After(servingLimit):
		// Whatever sshd does: the machine's time limit has to be known.
		m.log.Consolef("sshd has the key for %s and does not accept connections", servingLimit)
	}
	// What is new in authorized_keys is whole on the disk already, and host keys with it; now the names are, too.
	m.tasks.Spawn("sync", func() error {
		syscall.Sync()
		return nil
	})
	m.tasks.Spawn("services", m.completeSystem)
	user := admission.User
	data := admission.AfterSSHD()
	if err := data.Apply(phases.Recorded, m.network.SetHostname); err != nil {
		m.log.Consolef("user data: %v", err)
	}
	mounter := &volumes.Mounter{
		Log: m.log, Tasks: m.tasks, Book: phases.Recorded, Modules: m.modules, Run: m.services.RunLogged,
		Account: user.Find, Keys: user,
	}
	mounter.Mount(data.Mounts)
	m.services.StartServices(data.Services)
	m.onResume(func() error {
		return errors.Join(access.HandOverAgain(user, m.marks, m.log), m.marks.Write(timeline.File))
	})
	if settings.SSMKeys != "" {
		m.tasks.Spawn("SSM parameter", func() error {
			admission.AdmitParameter(access.SSMProgram, settings.SSMKeys, m.services.Run)
			return nil
		})
	}
	lifetime := userdata.NewLifetime(data, admission.Client.Date(), m.log)
	m.tasks.Spawn("tag of the time limit", func() error {
		lifetime.Watch(admission.Client)
		return nil
	})
	m.powerOff("its time is up: " + lifetime.Await(time.Sleep))
	return nil
}

// tellTimeline writes the timeline to its file and to the console.
func (m *machine) tellTimeline(mark string) {
	read, err := timeline.RootReads()
	if err == nil {
		m.marks.MarkReads(mark, read)
		err = m.marks.Write(timeline.File)
	}
	if err != nil {
		m.log.Consolef("timeline: %v", err)
	}
	m.log.Consolef("timeline %s", m.marks.JSON())
}

// loginDelay is how long buttons and the root's growth wait for the first login after sshd serves: a user who launched a
// machine to log in does so at once.
const loginDelay = time.Second

// How long control groups that no service needs yet wait for it, and then for its session to start.
const (
	loginLimit   = 10 * time.Second
	sessionLimit = 2 * time.Second
)

// completeSystem does what a login does not need, after sshd serves.
func (m *machine) completeSystem() error {
	m.services.StartServices(nil)
	m.tasks.SpawnOptional("root volume", func() error {
		defer close(m.grown)
		m.awaitLogin(loginDelay)
		return volumes.GrowRoot(m.log)
	})
	if m.awaitLogin(loginLimit) {
		time.Sleep(sessionLimit)
	}
	m.services.Delegate()
	hostKeys := paths.SSH
	if len(m.sshdOptions) > 0 {
		hostKeys = runtimeHostKeys
	}
	if err := access.PrintHostKeys(hostKeys, paths.Console); err != nil {
		m.log.Journalf("host keys: %v", err)
	}
	return nil
}

// awaitLogin waits for the first login, which needs processor and disk, and reports whether it came in time.
func (m *machine) awaitLogin(limit time.Duration) bool {
	select {
	case <-m.loggedIn:
		return true
	case <-time.After(limit):
		return false
	}
}

// makeHostKeys falls back on keys in memory: a machine with a read-only or full root has another identity at each start,
// but people can log in and repair it.
func (m *machine) makeHostKeys(told <-chan struct{}) error {
	made, err := access.EnsureHostKeys(paths.SSH, m.marks)
	if err == nil {
		m.tasks.Spawn("word of host keys", func() error {
			<-told
			m.log.JournalLines(made)
			return nil
		})
		return nil
	}
	<-told
	m.log.Consolef("host keys: %v; this start has its own, in %s", err, runtimeHostKeys)
	if err := os.MkdirAll(runtimeHostKeys, 0o700); err != nil {
		return err
	}
	if made, err = access.EnsureHostKeys(runtimeHostKeys, m.marks); err != nil {
		return err
	}
	m.log.JournalLines(made)
	files, err := filepath.Glob(runtimeHostKeys + "/ssh_host_*_key")
	for _, file := range files {
		m.sshdOptions = append(m.sshdOptions, "-h", file)
	}
	return err
}

// powerOff asks for the shutdown and returns.
func (m *machine) powerOff(reason string) { m.goDown(shutdown.Ending{Reason: reason}) }

func (m *machine) goDown(how shutdown.Ending) {
	select {
	case m.ending <- how:
	default: // it is going down already
	}
}

// openModules reads the index of the running kernel's modules.
func openModules() (*kmod.Tree, error) {
	release, err := sysfs.ReadLine("/proc/sys/kernel/osrelease")
	if err != nil {
		return nil, err
	}
	return kmod.Open("/lib/modules/" + release)
}
