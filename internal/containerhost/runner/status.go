package runner

import (
	"time"

	"instantenv/internal/containerhost/config"
)

// States of the container.
const (
	Starting  = "starting"
	Waiting   = "waiting"   // until it is started again
	Up        = "running"   // and has not passed its check yet
	Healthy   = "healthy"   // its last check was good; without a check: it accepts connections
	Unhealthy = "unhealthy" // its last check failed
)

// A Status is what `container-host status --json` prints. It has nothing of the container's environment.
type Status struct {
	Image     string        `json:"image"`
	Tag       string        `json:"tag"`
	Ports     []config.Port `json:"ports"`
	State     string        `json:"state"`
	Container string        `json:"container,omitempty"`
	ImageID   string        `json:"image_id,omitempty"`
	Address   string        `json:"address,omitempty"`
	Since     time.Time     `json:"since,omitzero"`
	Failures  int           `json:"failures"` // of the check, in a row
	Restarts  int           `json:"restarts"` // since the runner began
	Reason    string        `json:"reason,omitempty"`
	Logs      string        `json:"logs,omitempty"` // of the container that failed last
	Update    *Outcome      `json:"update,omitempty"`
}

// Status returns a copy.
func (r *Runner) Status() Status {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	return r.status
}

func (r *Runner) change(change func(*Status)) {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	change(&r.status)
}

func (r *Runner) tag() string { return r.Status().Tag }

func (r *Runner) waits(pause time.Duration) {
	r.change(func(s *Status) {
		s.Container, s.ImageID, s.Address = "", "", ""
		if s.State = Starting; pause > 0 {
			s.State = Waiting
		}
	})
}

func (r *Runner) isRunning(one *instance) {
	r.change(func(s *Status) {
		s.State, s.Tag, s.Container, s.ImageID, s.Address = Up, one.tag, one.name, one.image, one.address
		s.Since, s.Failures = one.begun.UTC(), 0
	})
}

// isHealthy and isUnhealthy say nothing of a container that is not the current one any more.
func (r *Runner) isHealthy(one *instance) {
	r.change(func(s *Status) {
		if s.Container == one.name {
			s.State, s.Failures = Healthy, 0
		}
	})
}

func (r *Runner) isUnhealthy(one *instance, failures int, err error) {
	r.change(func(s *Status) {
		if s.Container == one.name {
			s.State, s.Failures, s.Reason = Unhealthy, failures, err.Error()
		}
	})
}

func (r *Runner) restarts(reason error, logs string) {
	r.change(func(s *Status) {
		s.Restarts++
		s.Reason, s.Logs = reason.Error(), logs
	})
}

func (r *Runner) failed(err error, begin time.Time) {
	r.change(func(s *Status) { s.Reason, s.Since = err.Error(), begin.UTC() })
}

func (r *Runner) updated(outcome Outcome) {
	r.change(func(s *Status) { s.Update = &outcome })
}

// phasesOf reports the phases of the container that goes on after an update has failed.
func (r *Runner) phasesOf(current *instance) {
	if current == nil {
		return
	}
	r.Machine.Phase(PhaseLoaded, Done, "")
	r.Machine.Phase(PhaseService, Done, "")
}

// remember keeps the last lines of a container that failed. They are for root alone, and no part of any message: a program
// may write its secrets there.
func (r *Runner) remember(logs string) {
	r.change(func(s *Status) { s.Logs = logs })
}
