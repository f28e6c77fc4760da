package runner_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"instantenv/internal/containerhost/config"
	"instantenv/internal/containerhost/docker"
	"instantenv/internal/containerhost/dockertest"
	"instantenv/internal/containerhost/runner"
)

const secret = "PASSWORD=correct-horse"

// machine stands in for the host: what its containers answer goes by the tag of the one that has the asked address.
type machine struct {
	daemon *dockertest.Daemon

	mutex       sync.Mutex
	published   string // the address that the ports lead to; "" for none
	publishings []string
	ill         map[string]string // tag: the error of its check
	phases      map[string]string // name: state and reason
	log         []string
	environment []string
	absent      error // why there is no environment
	firewall    error
}

func (m *machine) with(change func()) {
	m.mutex.Lock()
	defer m.mutex.Unlock()
	change()
}

func (m *machine) Publish(_ context.Context, _ []config.Port, address string) error {
	m.mutex.Lock()
	defer m.mutex.Unlock()
	if m.firewall != nil {
		return m.firewall
	}
	m.published = address
	m.publishings = append(m.publishings, address)
	return nil
}

func (m *machine) Check(_ context.Context, url string) error {
	for _, one := range m.daemon.Running() {
		if strings.Contains(url, "//"+one.Address+":") {
			m.mutex.Lock()
			defer m.mutex.Unlock()
			_, tag, _ := strings.Cut(one.Image, ":")
			if message := m.ill[tag]; message != "" {
				return errors.New(message)
			}
			return nil
		}
	}
	return errors.New("connection refused")
}

func (m *machine) Connect(context.Context, int) error {
	m.mutex.Lock()
	address := m.published
	m.mutex.Unlock()
	for _, one := range m.daemon.Running() {
		if one.Address == address {
			return nil
		}
	}
	return errors.New("connection refused")
}

func (m *machine) Phase(name, state, reason string) {
	m.with(func() { m.phases[name] = strings.TrimSpace(state + " " + reason) })
}

func (m *machine) Environment(context.Context, config.Config) ([]string, error) {
	m.mutex.Lock()
	defer m.mutex.Unlock()
	return m.environment, m.absent
}

func (m *machine) SaveEnvironment(text []byte) error {
	m.with(func() { m.environment, m.absent = strings.Fields(string(text)), nil })
	return nil
}

func (m *machine) Login(context.Context, config.Config) (*docker.Login, error) { return nil, nil }

func (m *machine) Region(context.Context) (string, error) { return "eu-west-1", nil }

func (m *machine) Logf(format string, arguments ...any) {
	m.with(func() { m.log = append(m.log, fmt.Sprintf(format, arguments...)) })
}

// A world is a runner, the daemon and the machine.
type world struct {
	*testing.T
	*machine
	runner *runner.Runner
	end    func()
}

// in runs a test on virtual time: five minutes pass at once.
func in(t *testing.T, change func(*config.Config), test func(*world)) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "state.json")
	synctest.Test(t, func(t *testing.T) {
		w := begin(t, file, dockertest.New(), change)
		defer w.end()
		test(w)
	})
}

// begin starts a runner of team/app:v1, which the daemon has, as it has v2.
func begin(t *testing.T, file string, daemon *dockertest.Daemon, change func(*config.Config)) *world {
	t.Helper()
	settings := config.Default()
	settings.Image, settings.Tag = "team/app", "v1"
	settings.Ports = []config.Port{{Host: 80, Container: 8080}}
	settings.HealthPort, settings.HealthPath = 8080, "/health"
	if change != nil {
		change(&settings)
	}
	for _, tag := range []string{"v1", "v2", "v3", "v4"} {
		daemon.Images["team/app:"+tag] = "sha256:" + tag
	}
	host := &machine{daemon: daemon, ill: map[string]string{}, phases: map[string]string{}}
	kept := runner.New(settings, docker.Over(daemon.Dial), host, runner.StateFile(file))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() {
		time.Sleep(time.Nanosecond) // on virtual time: the test prepares its world first
		done <- kept.Run(ctx)
	}()
	end := sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return &world{t, host, kept, end}
}

// after lets virtual time pass, and everything that has to happen in it.
func (w *world) after(pause time.Duration) {
	// What the test has read so far was read before what happens now; the race detector does not count virtual time.
	w.daemon.Change(func() { w.with(func() {}) })
	time.Sleep(pause)
	synctest.Wait()
}

// runs fails unless exactly one container runs, which has the tag and the ports.
func (w *world) runs(tag string) dockertest.Container {
	w.Helper()
	running := w.daemon.Running()
	if len(running) != 1 || running[0].Image != "team/app:"+tag {
		w.Fatalf("running: %+v, wanted one of %s; log: %q", running, tag, w.log)
	}
	if w.published != running[0].Address {
		w.Fatalf("the ports lead to %q, not to %s", w.published, running[0].Address)
	}
	return running[0]
}

func (w *world) update(tag string) runner.Outcome {
	w.Helper()
	w.after(0)
	outcome, err := w.runner.Update(w.Context(), tag, false)
	if err != nil {
		w.Fatal(err)
	}
	return outcome
}

func TestItStartsWhatIsOnTheMachineAndPullsNothing(t *testing.T) {
	in(t, nil, func(w *world) {
		w.after(time.Second)
		one := w.runs("v1")
		if slices.Contains(w.daemon.Requests, "POST /images/create") {
			t.Error("it asked a registry")
		}
		if one.LogType != "json-file" || one.LogOptions["max-size"] != "10m" || one.LogOptions["max-file"] != "3" {
			t.Errorf("its log is not bounded: %s %v", one.LogType, one.LogOptions)
		}
		if w.publishings[0] != "" {
			t.Error("the rule against the metadata service came after the container")
		}
		for _, name := range []string{runner.PhaseLoaded, runner.PhaseService, runner.PhaseReady} {
			if w.phases[name] != "done" {
				t.Errorf("%s is %q", name, w.phases[name])
			}
		}
		if status := w.runner.Status(); status.State != runner.Healthy || status.Restarts != 0 {
			t.Errorf("%+v", status)
		}
	})
}

func TestItPullsWhatIsNotThereAndSaysWhyItCannot(t *testing.T) {
	in(t, func(c *config.Config) { c.Tag = "absent" }, func(w *world) {
		w.after(time.Second)
		if reason := w.phases[runner.PhaseLoaded]; !strings.Contains(reason, "failed docker: pull team/app:absent: manifest") {
			t.Error(reason)
		}
		w.daemon.Change(func() { w.daemon.Registry["team/app:absent"] = "sha256:absent" })
		w.after(time.Minute)
		w.runs("absent")
	})
}

func TestOneThatEndsIsStartedAgainAtFirstAtOnce(t *testing.T) {
	in(t, nil, func(w *world) {
		w.after(time.Minute)
		first := w.runs("v1")
		w.daemon.End(137)
		w.after(time.Second)
		if w.runs("v1").ID == first.ID {
			t.Error("it is the same container")
		}
		status := w.runner.Status()
		if status.Restarts != 1 || status.Reason != "ended with exit status 137" {
			t.Errorf("%+v", status)
		}
	})
}

func TestOneThatEndsTimeAfterTimeIsStartedLessOften(t *testing.T) {
	in(t, nil, func(w *world) {
		w.after(time.Second)
		w.daemon.Change(func() {
			w.daemon.Ends["team/app:v1"] = 3
			w.daemon.Logs["team/app:v1"] = "no such file; " + secret
		})
		w.machine.environment = []string{secret}
		w.daemon.End(3)
		w.after(10 * time.Minute)
		starts := 0
		for _, asked := range w.daemon.Requests {
			if strings.HasSuffix(asked, "/start") {
				starts++
			}
		}
		if starts < 15 || starts > 35 {
			t.Errorf("%d starts in ten minutes, wanted one every 30 s", starts)
		}
		if left := len(w.daemon.Containers); left != 0 {
			t.Errorf("%d containers are left behind", left)
		}
		if reason := w.phases[runner.PhaseService]; reason != "failed team/app:v1 ended at once: exit status 3" {
			t.Error(reason)
		}
		if logs := w.runner.Status().Logs; logs != "no such file; PASSWORD=***" {
			t.Errorf("its last words: %q", logs)
		}
	})
}

func TestOneThatHangsIsReplaced(t *testing.T) {
	for _, interval := range []int{10, 300} {
		t.Run(fmt.Sprintf("%d s", interval), func(t *testing.T) {
			in(t, func(c *config.Config) { c.HealthIntervalS = interval }, func(w *world) {
				w.after(time.Minute)
				first := w.runs("v1")
				w.with(func() { w.ill["v1"] = "no answer" })
				period := config.Seconds(interval)
				w.after(2 * period)
				if w.runs("v1").ID != first.ID {
					t.Error("two failed checks replaced it; three are allowed")
				}
				w.with(func() { w.ill["v1"] = "no answer" })
				w.after(period)
				w.with(func() { delete(w.ill, "v1") })
				w.after(time.Minute)
				if w.runs("v1").ID == first.ID {
					t.Error("it was not replaced")
				}
				if said := strings.Join(w.log, "\n"); !strings.Contains(said, "failed its check 3 times: no answer") {
					t.Error(said)
				}
			})
		})
	}
}

func TestChecksThatFailWithinTheGraceDoNotCount(t *testing.T) {
	in(t, func(c *config.Config) { c.HealthGraceS = 120 }, func(w *world) {
		w.with(func() { w.ill["v1"] = "starting" })
		w.after(119 * time.Second)
		first := w.runs("v1")
		w.with(func() { delete(w.ill, "v1") })
		w.after(time.Minute)
		if w.runs("v1").ID != first.ID || w.runner.Status().Restarts != 0 {
			t.Error("a slow starter was replaced")
		}
	})
}

func TestOneThatNeverBecomesReadyIsReplacedAfterTheGrace(t *testing.T) {
	in(t, nil, func(w *world) {
		w.with(func() { w.ill["v1"] = "status 500" })
		w.after(25 * time.Second)
		first := w.runs("v1")
		w.after(45 * time.Second)
		if w.runs("v1").ID == first.ID {
			t.Error("it was not replaced")
		}
	})
}

func TestATagIsRolledOutAfterItsCheckAndOutlivesARestart(t *testing.T) {
	in(t, nil, func(w *world) {
		w.after(time.Minute)
		first := w.runs("v1")
		outcome := w.update("v2")
		synctest.Wait()
		second := w.runs("v2")
		if !outcome.OK || outcome.From != "v1" || outcome.GapMS != 0 {
			t.Errorf("%+v", outcome)
		}
		if want := []string{"", first.Address, second.Address}; !slices.Equal(w.publishings, want) {
			t.Errorf("published %q, wanted %q", w.publishings, want)
		}
		w.end()
		again := begin(w.T, string(w.runner.Saved), w.daemon, nil)
		defer again.end()
		again.after(time.Second)
		again.runs("v2")
	})
}

func TestADeclaredTagThatIsNewWinsOverTheUpdateBeforeIt(t *testing.T) {
	in(t, nil, func(w *world) {
		w.after(time.Second)
		w.update("v2")
		w.end()
		again := begin(w.T, string(w.runner.Saved), w.daemon, func(c *config.Config) { c.Tag = "v3" })
		defer again.end()
		again.after(time.Second)
		again.runs("v3")
	})
}

func TestABrokenTagIsNotRolledOut(t *testing.T) {
	breaks := map[string]struct {
		tag    string
		change func(*world)
		reason string
	}{
		"not there":     {"v9", func(*world) {}, "pull team/app:v9: manifest"},
		"ends":          {"v2", func(w *world) { w.daemon.Ends["team/app:v2"] = 2 }, "ended at once: exit status 2"},
		"never answers": {"v2", func(w *world) { w.ill["v2"] = "status 500" }, "was not ready after 30s: status 500"},
		"cannot be made": {"v2", func(w *world) {
			w.daemon.Fails["POST /containers/create"] = "no space left on device"
		}, "no space left on device"},
	}
	for name, broken := range breaks {
		t.Run(name, func(t *testing.T) {
			in(t, nil, func(w *world) {
				w.after(time.Minute)
				first := w.runs("v1")
				w.daemon.Change(func() { w.with(func() { broken.change(w) }) })
				outcome := w.update(broken.tag)
				synctest.Wait()
				if outcome.OK || !strings.Contains(outcome.Error, broken.reason) {
					t.Errorf("%+v", outcome)
				}
				if w.runs("v1").ID != first.ID || len(w.daemon.Containers) != 1 {
					t.Error("the old one did not go on alone")
				}
				if !slices.Equal(w.publishings, []string{"", first.Address}) {
					t.Errorf("the ports moved: %q", w.publishings)
				}
				w.daemon.Change(func() { clear(w.daemon.Fails) })
				w.after(time.Minute)
				if w.runs("v1").ID != first.ID {
					t.Error("the old one is not watched any more")
				}
			})
		})
	}
}

func TestATagThatFailsAfterTheSwapGoesBack(t *testing.T) {
	in(t, nil, func(w *world) {
		w.after(time.Minute)
		first := w.runs("v1")
		done := make(chan runner.Outcome)
		go func() { done <- w.update("v2") }()
		w.after(2 * time.Second)
		if running := w.daemon.Running(); len(running) != 2 || w.published != running[1].Address {
			t.Fatalf("the new one does not have the ports while the old one runs on: %q, %+v", w.published, running)
		}
		w.daemon.Change(func() { w.with(func() { w.ill["v2"] = "status 503" }) })
		outcome := <-done
		synctest.Wait()
		if outcome.OK || !strings.Contains(outcome.Error, "failed its check after it was ready: status 503") {
			t.Errorf("%+v", outcome)
		}
		if w.runs("v1").ID != first.ID {
			t.Error("the old one did not go on")
		}
	})
}

func TestTheGapOfANewTagThatDoesNotListenIsMeasured(t *testing.T) {
	in(t, func(c *config.Config) { c.HealthPort = 0 }, func(w *world) {
		w.after(time.Minute)
		done := make(chan runner.Outcome)
		go func() { done <- w.update("v2") }()
		w.after(time.Second)
		w.daemon.Change(func() { w.with(func() { w.published = "172.17.0.99" }) })
		w.after(500 * time.Millisecond)
		second := w.daemon.Running()[1]
		w.with(func() { w.published = second.Address })
		if outcome := <-done; outcome.GapMS < 490 || outcome.GapMS > 520 {
			t.Errorf("the port was dead for 500 ms: %+v", outcome)
		}
	})
}

func TestTagsThatWereRolledOutAreRemovedButTheLatest(t *testing.T) {
	in(t, nil, func(w *world) {
		w.after(time.Second)
		for _, tag := range []string{"v2", "v3", "v4"} {
			if outcome := w.update(tag); !outcome.OK {
				t.Fatalf("%+v", outcome)
			}
		}
		w.daemon.Change(func() { w.daemon.Images["team/app:loaded-by-hand"] = "sha256:hand" })
		w.update("v2")
		synctest.Wait()
		for reference, there := range map[string]bool{
			"team/app:v1": false, "team/app:v2": true, "team/app:v3": true, "team/app:v4": true,
			"team/app:loaded-by-hand": true,
		} {
			if _, is := w.daemon.Images[reference]; is != there {
				t.Errorf("%s is there: %t", reference, is)
			}
		}
	})
}

func TestTagsThatFailDoNotTakeThePlaceOfTheOneBefore(t *testing.T) {
	in(t, nil, func(w *world) {
		w.after(time.Second)
		w.update("v2")
		w.daemon.Change(func() { w.daemon.Registry["team/app:broken"] = "sha256:broken" })
		w.with(func() { w.ill["broken"] = "status 500" })
		for _, tag := range []string{"absent", "broken", "absent"} {
			if w.update(tag).OK {
				t.Fatalf("%s was rolled out", tag)
			}
		}
		w.update("v3")
		synctest.Wait()
		for reference, there := range map[string]bool{"team/app:v1": true, "team/app:v2": true, "team/app:broken": false} {
			if _, is := w.daemon.Images[reference]; is != there {
				t.Errorf("%s is there: %t", reference, is)
			}
		}
		if outcome := w.update("v1"); !outcome.OK {
			t.Errorf("there is no way back: %+v", outcome)
		}
	})
}

func TestItWaitsForAnEnvironmentAndForNothingElse(t *testing.T) {
	in(t, func(c *config.Config) { c.Environment = config.EnvironmentSSH }, func(w *world) {
		w.with(func() { w.absent = errors.New("waiting for the environment") })
		w.after(time.Minute)
		if running := w.daemon.Running(); len(running) != 0 {
			t.Fatalf("it was started without its environment: %+v", running)
		}
		if reason := w.phases[runner.PhaseService]; reason != "failed waiting for the environment" {
			t.Error(reason)
		}
		outcome, err := w.runner.SetEnvironment(w.Context(), []byte(secret+"\n"))
		if err != nil || !outcome.OK {
			t.Fatalf("%v %+v", err, outcome)
		}
		synctest.Wait()
		if one := w.runs("v1"); !slices.Equal(one.Env, []string{secret}) {
			t.Errorf("its environment: %q", one.Env)
		}
		if said := strings.Join(w.log, " ") + fmt.Sprint(w.phases, w.runner.Status()); strings.Contains(said, "horse") {
			t.Errorf("the secret is shown: %s", said)
		}
	})
}

func TestAnEnvironmentThatBreaksTheContainerGoesBack(t *testing.T) {
	in(t, func(c *config.Config) { c.Environment, c.HealthFailures = config.EnvironmentSSH, 100 }, func(w *world) {
		w.after(time.Minute)
		first := w.runs("v1")
		w.machine.environment = []string{"A=1"}
		w.with(func() { w.ill["v1"] = "status 500" })
		outcome, err := w.runner.SetEnvironment(w.Context(), []byte("A=2\n"))
		w.with(func() { clear(w.ill) })
		if err != nil || outcome.OK {
			t.Fatalf("%v %+v", err, outcome)
		}
		synctest.Wait()
		if w.runs("v1").ID != first.ID || !slices.Equal(w.machine.environment, []string{"A=1"}) {
			t.Errorf("the former environment is not back: %q", w.machine.environment)
		}
	})
}

func TestOnlyAnImageOfItsKindTakesAnEnvironment(t *testing.T) {
	in(t, nil, func(w *world) {
		if _, err := w.runner.SetEnvironment(w.Context(), []byte("A=1")); err == nil {
			t.Error("it was taken")
		}
		w.after(time.Second)
	})
}

func TestARunnerThatDiedLeavesItsContainerToTheNext(t *testing.T) {
	file := filepath.Join(t.TempDir(), "state.json")
	synctest.Test(t, func(t *testing.T) {
		daemon := dockertest.New()
		before := begin(t, file, daemon, nil)
		before.after(time.Minute)
		first := before.runs("v1")
		defer before.end()
		again := begin(t, file, daemon, nil)
		defer again.end()
		again.after(time.Second)
		if again.runs("v1").ID != first.ID {
			t.Error("it was started anew")
		}
		if !slices.Equal(again.publishings, []string{first.Address}) {
			t.Errorf("its ports were taken away meanwhile: %q", again.publishings)
		}
		changed := begin(t, file, daemon, func(c *config.Config) { c.LogMaxSize = "1m" })
		defer changed.end()
		changed.after(time.Second)
		one := changed.daemon.Running()
		if one[len(one)-1].ID == first.ID {
			t.Error("a container of another make was taken over")
		}
	})
}

func TestNoContainerRunsWithoutTheRuleAgainstTheMetadataService(t *testing.T) {
	in(t, nil, func(w *world) {
		w.with(func() { w.firewall = errors.New("iptables: no such file") })
		w.after(time.Minute)
		if slices.Contains(w.daemon.Requests, "POST /containers/create") {
			t.Errorf("%q", w.daemon.Requests)
		}
		w.with(func() { w.firewall = nil })
		w.after(time.Minute)
		w.runs("v1")
	})
}

func TestADaemonThatIsAwayIsWaitedForAndDoesNotCountAsAnEnd(t *testing.T) {
	in(t, nil, func(w *world) {
		w.after(time.Minute)
		first := w.runs("v1")
		w.daemon.Change(func() {
			w.daemon.Fails["POST /containers/"+first.ID+"/wait"] = "shutting down"
			w.daemon.Fails["GET /containers/"+first.ID+"/json"] = "shutting down"
		})
		w.after(5 * time.Minute)
		w.daemon.Change(func() { clear(w.daemon.Fails) })
		w.after(time.Minute)
		if w.runs("v1").ID != first.ID {
			t.Error("it was replaced although it ran on")
		}
	})
}

func TestADaemonThatRestartsEndsItsContainerAndNothingIsLeftOver(t *testing.T) {
	in(t, nil, func(w *world) {
		w.after(time.Minute)
		w.runs("v1")
		w.daemon.Change(func() { w.daemon.Fails["DELETE /containers/"] = "shutting down" })
		w.daemon.End(2)
		w.daemon.Change(func() { w.daemon.Fails["GET /_ping"] = "shutting down" })
		w.after(10 * time.Minute)
		w.daemon.Change(func() { clear(w.daemon.Fails) })
		w.after(time.Second)
		w.runs("v1")
		if left := len(w.daemon.Containers); left != 1 {
			t.Errorf("%d containers are there, wanted the one that runs", left)
		}
	})
}

func TestADaemonThatHangsDoesNotHoldTheRunnerForEver(t *testing.T) {
	in(t, nil, func(w *world) {
		w.after(time.Minute)
		first := w.runs("v1")
		w.daemon.Change(func() { w.daemon.Hangs["POST /containers/create"] = true })
		outcome := w.update("v2")
		if outcome.OK || !strings.Contains(outcome.Error, context.DeadlineExceeded.Error()) {
			t.Errorf("%+v", outcome)
		}
		synctest.Wait()
		if w.runs("v1").ID != first.ID {
			t.Error("the old one did not go on")
		}
	})
}

func TestAnEndOfTheRunnerStopsTheContainerInOrder(t *testing.T) {
	in(t, nil, func(w *world) {
		w.after(time.Second)
		w.end()
		if how := w.daemon.Containers[0].Stopped; how != "stop" {
			t.Errorf("it was ended by %q", how)
		}
	})
}

func TestAMachineWithoutAnImageSaysSo(t *testing.T) {
	in(t, func(c *config.Config) { c.Image = "" }, func(w *world) {
		w.after(time.Second)
		if reason := w.phases[runner.PhaseLoaded]; !strings.HasPrefix(reason, "failed no container image is named") {
			t.Error(reason)
		}
	})
}

func TestWhatIsNoTagIsRefused(t *testing.T) {
	in(t, nil, func(w *world) {
		w.after(time.Second)
		for _, tag := range []string{"", "-v", "v1; reboot", "a/b", strings.Repeat("a", 129)} {
			if _, err := w.runner.Update(w.Context(), tag, false); err == nil {
				t.Errorf("%q was taken", tag)
			}
		}
		w.runs("v1")
	})
}

func TestTheDaemonIsReachedByItsSocket(t *testing.T) {
	daemon := dockertest.New()
	socket := filepath.Join(t.TempDir(), "docker.sock")
	listener, err := listen(socket)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: daemon}
	go server.Serve(listener) //nolint:errcheck // ErrServerClosed
	defer server.Close()
	version, err := docker.New(socket).Ping(t.Context())
	if err != nil || version != dockertest.Version {
		t.Errorf("%q, %v", version, err)
	}
	if _, err := docker.New(socket).ImageID(t.Context(), "team/app:v1"); !docker.IsNotFound(err) {
		t.Errorf("%v is not the daemon's 404", err)
	}
	server.Close()
	if err := os.Remove(socket); err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	if _, err := docker.New(socket).Ping(t.Context()); err == nil {
		t.Error("nobody listens, and somebody answered")
	}
}
