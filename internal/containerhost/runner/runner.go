// Package runner keeps one container running: it starts it, checks it, replaces it, and says what it did.
//
// One goroutine, Run, takes all decisions; everybody else (the command line, by the control socket) sends it requests. Docker
// is given no restart policy, since it never replaces a container that hangs (moby/moby#28400) and advises against two
// supervisors (docs.docker.com/engine/containers/start-containers-automatically). The service manager starts the runner again
// when it ends; a container that still runs as it should is then taken over, not started again.
package runner

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"instantenv/internal/containerhost/config"
	"instantenv/internal/containerhost/docker"
)

// Labels of our containers.
const (
	label     = "instant-env.container-host"
	specLabel = "instant-env.container-host.spec" // digest of all that the container was made of
)

// Pauses before a container is started again: they double, and begin afresh after a run of steady.
const (
	pauseLeast = time.Second
	pauseMost  = 30 * time.Second
	steady     = 30 * time.Second
)

// readyPause is between two checks of a container that has not answered yet.
const readyPause = 250 * time.Millisecond

// Phases of the machine that the runner reports, and their states.
const (
	PhaseLoaded  = "container-loaded"  // the image is on the machine
	PhaseService = "container-service" // the container runs
	PhaseReady   = "container-ready"   // it passed its check, and its ports are published

	Running = "running"
	Done    = "done"
	Failed  = "failed"
)

// A Machine is what the runner needs beside Docker, so that tests can stand in for it.
type Machine interface {
	// Publish points the published ports at an address of the bridge; "" unpublishes them.
	Publish(ctx context.Context, ports []config.Port, address string) error
	// Check asks a container's health path, or without one whether a port accepts connections.
	Check(ctx context.Context, url string) error
	// Connect tries a published port of the machine.
	Connect(ctx context.Context, port int) error
	// Phase reports how far the machine has come.
	Phase(name, state, reason string)
	// Environment returns the container's environment, of which the source and the digest alone may be shown.
	Environment(ctx context.Context, settings config.Config) ([]string, error)
	// SaveEnvironment replaces what Environment reads.
	SaveEnvironment(text []byte) error
	// Login returns what the registry asks for, or nil.
	Login(ctx context.Context, settings config.Config) (*docker.Login, error)
	// Region is where the logs go to, for awslogs.
	Region(ctx context.Context) (string, error)
	// Logf writes a line to the machine's log.
	Logf(format string, arguments ...any)
}

// A Runner keeps one container.
type Runner struct {
	Settings config.Config
	Docker   *docker.Client
	Machine  Machine
	Saved    StateFile

	requests chan request
	mutex    sync.Mutex
	status   Status
}

// New makes a runner that does nothing yet.
func New(settings config.Config, daemon *docker.Client, machine Machine, saved StateFile) *Runner {
	return &Runner{
		Settings: settings, Docker: daemon, Machine: machine, Saved: saved,
		requests: make(chan request),
		status:   Status{Image: settings.Image, Tag: settings.Tag, Ports: settings.Ports, State: Starting},
	}
}

// An instance is a container of ours that runs.
type instance struct {
	id, name, address, image, tag string
	environment                   []string
	begun                         time.Time
	ended                         <-chan error // why it has to be replaced
	cancel                        context.CancelFunc
}

// errUnhealthy is the cause of a replacement of a container that did not end by itself.
var errUnhealthy = errors.New("failed its check")

// Run keeps the container running until the context ends, and stops it then.
func (r *Runner) Run(ctx context.Context) error {
	if err := r.awaitDocker(ctx); err != nil {
		return nil
	}
	tag, err := r.Saved.Tag(r.Settings)
	if err != nil {
		return err
	}
	r.change(func(s *Status) { s.Tag = tag })
	current := r.adopt(ctx, tag)
	for pause := time.Duration(0); ; {
		if current == nil {
			if current = r.startUntilItDoes(ctx, tag, pause); current == nil {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			r.shutDown(current)
			return nil
		case reason := <-current.ended:
			pause = nextPause(pause, time.Since(current.begun))
			r.replace(ctx, current, reason)
			current = nil
		case asked := <-r.requests:
			next, outcome := r.update(ctx, current, asked)
			if next != nil {
				current, tag = next, next.tag
			}
			asked.reply <- outcome
		}
	}
}

func nextPause(last, lasted time.Duration) time.Duration {
	switch {
	case lasted >= steady:
		return 0
	case last == 0:
		return pauseLeast
	default:
		return min(2*last, pauseMost)
	}
}

func (r *Runner) awaitDocker(ctx context.Context) error {
	for begin, complained := time.Now(), false; ; {
		_, err := r.Docker.Ping(ctx)
		if err == nil {
			return nil
		}
		if !complained && time.Since(begin) > 30*time.Second {
			complained = true
			r.Machine.Logf("waiting for Docker: %v", err)
			r.Machine.Phase(PhaseLoaded, Running, "waiting for Docker: "+err.Error())
		}
		if !sleep(ctx, readyPause) {
			return ctx.Err()
		}
	}
}

// adopt takes over a container that an earlier runner left running as it should be, and removes all others.
func (r *Runner) adopt(ctx context.Context, tag string) *instance {
	var current *instance
	r.removeUnless(ctx, func(id string) bool {
		if current != nil {
			return false
		}
		current = r.adoptOne(ctx, id, tag)
		return current != nil
	})
	if current != nil {
		r.Machine.Logf("container %s of an earlier runner goes on", current.name)
		r.began(ctx, current)
	}
	return current
}

// removeUnless removes our containers, the newest first, but for those that are wanted.
func (r *Runner) removeUnless(ctx context.Context, isWanted func(id string) bool) {
	ids, err := r.Docker.WithLabel(ctx, label)
	if err != nil {
		r.Machine.Logf("cannot list containers: %v", err)
	}
	for _, id := range ids {
		if isWanted(id) {
			continue
		}
		if err := r.Docker.Remove(ctx, id); err != nil {
			r.Machine.Logf("cannot remove container %.12s, which is left over: %v", id, err)
		}
	}
}

func (r *Runner) adoptOne(ctx context.Context, id, tag string) *instance {
	container, err := r.Docker.Inspect(ctx, id)
	if err != nil || !container.Running || container.Address == "" {
		return nil
	}
	spec, image, err := r.spec(ctx, tag)
	if err != nil || container.Image != image || container.Labels[specLabel] != spec.Labels[specLabel] {
		return nil
	}
	if r.Machine.Publish(ctx, r.Settings.Ports, container.Address) != nil {
		return nil
	}
	return &instance{
		id: id, name: container.Name, address: container.Address, image: image, tag: tag,
		environment: spec.Environment, begun: time.Now(),
	}
}

// startUntilItDoes starts the container, again and again with pauses; nil when the context ends.
func (r *Runner) startUntilItDoes(ctx context.Context, tag string, pause time.Duration) *instance {
	for {
		r.waits(pause)
		// An update to another tag is how a machine whose image does not start is mended.
		if asked, ok := r.sleepOrRequest(ctx, pause); !ok {
			return nil
		} else if asked != nil {
			next, outcome := r.update(ctx, nil, *asked)
			asked.reply <- outcome
			if next != nil {
				return next
			}
			continue
		}
		if r.awaitDocker(ctx) != nil {
			return nil
		}
		begin := time.Now()
		current, err := r.startPublished(ctx, tag)
		if err == nil {
			return current
		}
		if ctx.Err() != nil {
			return nil
		}
		r.Machine.Logf("%v", err)
		pause = nextPause(pause, 0)
		r.failed(err, begin)
	}
}

// startPublished starts the container of a tag and publishes its ports at once: nobody else has them.
func (r *Runner) startPublished(ctx context.Context, tag string) (*instance, error) {
	if err := r.guard(ctx); err != nil {
		return nil, err
	}
	// One that could not be removed while the daemon was away.
	r.removeUnless(ctx, func(string) bool { return false })
	current, err := r.start(ctx, tag, false)
	if err != nil {
		return nil, err
	}
	if err := r.Machine.Publish(ctx, r.Settings.Ports, current.address); err != nil {
		r.discard(ctx, current)
		err = fmt.Errorf("cannot publish its ports: %w", err)
		r.Machine.Phase(PhaseReady, Failed, err.Error())
		return nil, err
	}
	r.began(ctx, current)
	return current, nil
}

// guard makes the rule against the metadata service before any container can use it, and publishes nothing.
func (r *Runner) guard(ctx context.Context) error {
	err := r.Machine.Publish(ctx, r.Settings.Ports, "")
	if err != nil {
		err = fmt.Errorf("no container is started without the rule that keeps it from the metadata service: %w", err)
		r.Machine.Phase(PhaseService, Failed, err.Error())
	}
	return err
}

// began makes a container the current one: it is watched from now on.
func (r *Runner) began(ctx context.Context, current *instance) {
	r.isRunning(current)
	r.watch(ctx, current)
	r.Machine.Logf("%s:%s runs as %s", r.Settings.Image, current.tag, current.name)
}

// replace takes away a container that has ended or hangs.
func (r *Runner) replace(ctx context.Context, current *instance, reason error) {
	r.Machine.Logf("%s %v; starting it again", current.name, reason)
	r.restarts(reason, r.lastLines(ctx, current))
	r.Machine.Phase(PhaseReady, Failed, "the container "+reason.Error())
	r.discard(ctx, current)
}

// discard stops and removes a container.
func (r *Runner) discard(ctx context.Context, one *instance) {
	if one.cancel != nil {
		one.cancel()
	}
	if err := r.Docker.Stop(ctx, one.id, config.Seconds(r.Settings.StopTimeoutS)); err != nil && !docker.IsNotFound(err) {
		r.Machine.Logf("cannot stop %s: %v", one.name, err)
	}
	if err := r.Docker.Remove(ctx, one.id); err != nil {
		r.Machine.Logf("cannot remove %s: %v", one.name, err)
	}
}

// shutDown stops the container when the runner is told to end. It is removed at the next start.
func (r *Runner) shutDown(current *instance) {
	grace := config.Seconds(r.Settings.StopTimeoutS)
	ctx, cancel := context.WithTimeout(context.Background(), grace+5*time.Second)
	defer cancel()
	if err := r.Docker.Stop(ctx, current.id, grace); err != nil {
		r.Machine.Logf("cannot stop %s: %v", current.name, err)
	}
}

// sleep waits, or returns false when the context has ended.
func sleep(ctx context.Context, pause time.Duration) bool {
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// sleepOrRequest waits, but for a request it does not; false when the context has ended.
func (r *Runner) sleepOrRequest(ctx context.Context, pause time.Duration) (*request, bool) {
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return nil, false
	case asked := <-r.requests:
		return &asked, true
	case <-timer.C:
		return nil, true
	}
}
