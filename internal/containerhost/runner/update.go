package runner

import (
	"context"
	"errors"
	"fmt"
	"time"

	"instantenv/internal/containerhost/config"
	"instantenv/internal/containerhost/docker"
)

// A request asks the runner for another container: of another tag, or with another environment.
type request struct {
	tag         string // "": as it is
	pull        bool   // even when the machine has the tag
	environment []byte // nil: as it is
	reply       chan Outcome
}

// An Outcome is how an update went. GapMS is the longest time that a published port did not accept a connection around the
// swap, as seen from the machine at intervals of ProbeMS; -1 without a published port.
type Outcome struct {
	From    string    `json:"from"`
	Tag     string    `json:"tag"`
	OK      bool      `json:"ok"`
	GapMS   float64   `json:"gap_ms"`
	ProbeMS float64   `json:"probe_ms"`
	TookMS  int64     `json:"took_ms"`
	At      time.Time `json:"at"`
	Error   string    `json:"error,omitempty"`
	Logs    string    `json:"logs,omitempty"` // the last lines of a container that failed
}

// Update rolls a tag out and returns when that is decided. What ran before runs on unless OK.
func (r *Runner) Update(ctx context.Context, tag string, pull bool) (Outcome, error) {
	if !config.IsTag(tag) {
		return Outcome{}, fmt.Errorf("tag %.200q must be up to 128 letters, digits, dots, dashes and underscores", tag)
	}
	return r.ask(ctx, request{tag: tag, pull: pull})
}

// SetEnvironment gives the container another environment by the same way.
func (r *Runner) SetEnvironment(ctx context.Context, text []byte) (Outcome, error) {
	if r.Settings.Environment != config.EnvironmentSSH {
		return Outcome{}, fmt.Errorf("this image's environment is %q, not ssh: bake it with environment=ssh",
			r.Settings.Environment)
	}
	return r.ask(ctx, request{environment: append([]byte{}, text...)}) // an empty one, too, is another
}

func (r *Runner) ask(ctx context.Context, asked request) (Outcome, error) {
	asked.reply = make(chan Outcome, 1)
	select {
	case r.requests <- asked:
	case <-ctx.Done():
		return Outcome{}, fmt.Errorf("the runner is busy: %w", ctx.Err())
	}
	select {
	case outcome := <-asked.reply:
		return outcome, nil
	case <-ctx.Done():
		return Outcome{}, fmt.Errorf("the update goes on, `container-host status` has its outcome: %w", ctx.Err())
	}
}

// update replaces the current container, which may be none, if the new one proves itself. It returns the new one, or nil.
func (r *Runner) update(ctx context.Context, current *instance, asked request) (*instance, Outcome) {
	begin := time.Now()
	outcome := Outcome{Tag: asked.tag, GapMS: -1, ProbeMS: probePause.Seconds() * 1000, At: begin.UTC()}
	if current != nil {
		outcome.From = current.tag
	}
	if asked.tag == "" {
		outcome.Tag = r.tag()
	}
	next, err := r.tryUpdate(ctx, current, asked, &outcome)
	outcome.OK = err == nil
	if err != nil {
		outcome.Error = err.Error()
		r.Machine.Logf("update to %s failed: %v", outcome.Tag, err)
	}
	outcome.TookMS = time.Since(begin).Milliseconds()
	r.updated(outcome)
	return next, outcome
}

func (r *Runner) tryUpdate(
	ctx context.Context, current *instance, asked request, outcome *Outcome,
) (*instance, error) {
	// Room is made first: the disk that is full after ten updates cannot take the eleventh.
	r.prune(ctx, outcome.From, outcome.Tag)
	if current == nil {
		if err := r.guard(ctx); err != nil {
			return nil, err
		}
	}
	undo := func() {}
	if asked.environment != nil {
		var err error
		if undo, err = r.swapEnvironment(ctx, asked.environment); err != nil {
			return nil, err
		}
	}
	had := r.has(ctx, outcome.Tag)
	next, err := r.start(ctx, outcome.Tag, asked.pull)
	if err == nil {
		if err = r.swap(ctx, current, next, outcome); err != nil {
			r.remember(r.lastLines(ctx, next))
			r.discard(ctx, next)
		}
	}
	if err != nil {
		outcome.Logs = r.Status().Logs
		undo()
		if !had {
			r.removeImage(ctx, outcome.Tag)
		}
		r.phasesOf(current)
		return nil, err
	}
	if err := r.Saved.Keep(r.Settings, outcome.Tag); err != nil {
		r.Machine.Logf("a restart will run the tag of before: %v", err)
	}
	r.began(ctx, next)
	if current != nil {
		r.discard(ctx, current)
	}
	r.prune(ctx, outcome.From, outcome.Tag)
	return next, nil
}

// swapEnvironment replaces the environment; undo brings the former one back.
func (r *Runner) swapEnvironment(ctx context.Context, text []byte) (undo func(), err error) {
	before, errBefore := r.Machine.Environment(ctx, r.Settings)
	if err := r.Machine.SaveEnvironment(text); err != nil {
		return nil, err
	}
	return func() {
		if errBefore != nil {
			return // there was none; the new one stays for the next try
		}
		former := []byte{}
		for _, variable := range before {
			former = append(append(former, variable...), '\n')
		}
		if err := r.Machine.SaveEnvironment(former); err != nil {
			r.Machine.Logf("the former environment cannot be brought back: %v", err)
		}
	}, nil
}

// swap moves the ports to the next container after it has passed its check on the bridge, and back if it fails afterwards.
func (r *Runner) swap(ctx context.Context, current, next *instance, outcome *Outcome) error {
	if err := r.awaitReady(ctx, next); err != nil {
		return err
	}
	prober := r.startProber(ctx)
	err := r.Machine.Publish(ctx, r.Settings.Ports, next.address)
	if err == nil {
		err = r.settle(ctx, next)
	}
	if err != nil && current != nil {
		if back := r.Machine.Publish(ctx, r.Settings.Ports, current.address); back != nil {
			err = errors.Join(err, fmt.Errorf("and the ports cannot be moved back: %w", back))
		}
	}
	outcome.GapMS = prober.stop()
	return err
}

// awaitReady returns when a container has passed its check once, on its own address.
func (r *Runner) awaitReady(ctx context.Context, one *instance) error {
	for {
		err := r.check(ctx, one)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		container, inspected := r.Docker.Inspect(ctx, one.id)
		if inspected == nil && !container.Running {
			return fmt.Errorf("%s:%s ended before it was ready: %s", r.Settings.Image, one.tag, describe(container))
		}
		if grace := config.Seconds(r.Settings.HealthGraceS); time.Since(one.begun) > grace {
			return fmt.Errorf("%s:%s was not ready after %s: %w", r.Settings.Image, one.tag, grace, err)
		}
		if !sleep(ctx, readyPause) {
			return ctx.Err()
		}
	}
}

// settle watches a container that has just got the ports: it must run, and pass its check.
func (r *Runner) settle(ctx context.Context, one *instance) error {
	for begin := time.Now(); ; {
		container, err := r.Docker.Inspect(ctx, one.id)
		if err == nil && !container.Running {
			return fmt.Errorf("%s:%s ended after it was ready: %s", r.Settings.Image, one.tag, describe(container))
		}
		if err := r.check(ctx, one); err != nil {
			return fmt.Errorf("%s:%s failed its check after it was ready: %w", r.Settings.Image, one.tag, err)
		}
		if time.Since(begin) >= config.Seconds(r.Settings.SettleS) {
			return nil
		}
		if !sleep(ctx, readyPause) {
			return ctx.Err()
		}
	}
}

// prune removes images without a tag, and of the tags that were rolled out those that are neither needed nor among the
// KeepImages latest others. Images that somebody else loaded stay.
func (r *Runner) prune(ctx context.Context, needed ...string) {
	if err := r.Docker.PruneImages(ctx); err != nil {
		r.Machine.Logf("cannot prune images: %v", err)
	}
	obsolete, err := r.Saved.Tried(r.Settings, needed, func(tag string) bool { return r.has(ctx, tag) })
	if err != nil {
		r.Machine.Logf("cannot remember which tags were rolled out: %v", err)
	}
	for _, tag := range obsolete {
		r.removeImage(ctx, tag)
	}
}

// has reports whether the machine has a tag; where Docker does not say, it may.
func (r *Runner) has(ctx context.Context, tag string) bool {
	_, err := r.Docker.ImageID(ctx, r.Settings.Image+":"+tag)
	return !docker.IsNotFound(err)
}

func (r *Runner) removeImage(ctx context.Context, tag string) {
	if err := r.Docker.RemoveImage(ctx, r.Settings.Image+":"+tag); err != nil {
		r.Machine.Logf("cannot remove image %s:%s: %v", r.Settings.Image, tag, err)
	}
}
