package runner

import (
	"context"
	"fmt"
	"time"

	"instantenv/internal/containerhost/config"
	"instantenv/internal/containerhost/docker"
)

// watch begins to follow a container; its channel gets one reason, when it has to be replaced.
func (r *Runner) watch(ctx context.Context, one *instance) {
	ctx, one.cancel = context.WithCancel(ctx)
	ended := make(chan error, 2)
	one.ended = ended
	go func() {
		if reason := r.exit(ctx, one.id); ctx.Err() == nil {
			ended <- reason
		}
	}()
	go func() {
		if reason := r.illness(ctx, one); ctx.Err() == nil {
			ended <- reason
		}
	}()
}

// exit returns when the container does not run any more. The daemon itself may go away meanwhile, and come back with or
// without the container.
func (r *Runner) exit(ctx context.Context, id string) error {
	for {
		status, err := r.Docker.Wait(ctx, id)
		if err == nil {
			return fmt.Errorf("ended with exit status %d", status)
		}
		container, err := r.Docker.Inspect(ctx, id)
		switch {
		case docker.IsNotFound(err):
			return fmt.Errorf("was removed")
		case err == nil && !container.Running:
			return fmt.Errorf("ended: %s", describe(container))
		}
		if !sleep(ctx, time.Second) {
			return ctx.Err()
		}
	}
}

// illness returns when the container has failed its check too often. Until its first good answer failures do not count
// within the time of grace. Without a check, it is ready when it accepts a connection, and never ill.
func (r *Runner) illness(ctx context.Context, one *instance) error {
	grace := config.Seconds(r.Settings.HealthGraceS)
	pause := readyPause
	failures := 0
	for ready := false; ; {
		err := r.check(ctx, one)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err == nil:
			failures = 0
			r.isHealthy(one)
			if !ready {
				ready, pause = true, config.Seconds(r.Settings.HealthIntervalS)
				r.Machine.Phase(PhaseReady, Done, "")
			}
			if r.Settings.HealthPort == 0 {
				<-ctx.Done()
				return ctx.Err()
			}
		case ready || time.Since(one.begun) >= grace:
			failures++
			pause = config.Seconds(r.Settings.HealthIntervalS)
			r.isUnhealthy(one, failures, err)
			if r.Settings.HealthPort != 0 && failures >= r.Settings.HealthFailures {
				return fmt.Errorf("%w %d times: %w", errUnhealthy, failures, err)
			}
		}
		if !sleep(ctx, pause) {
			return ctx.Err()
		}
	}
}
