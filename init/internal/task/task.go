// Package task runs named work in goroutines and catches its errors and panics.
package task

import (
	"fmt"
	"runtime/debug"

	"instantenv/init/internal/logging"
	"instantenv/init/internal/timeline"
)

// A Group starts work. All its fields must be set.
type Group struct {
	Log   *logging.Logger
	Marks *timeline.Timeline // takes the stages of Async
	Fatal func(cause error)  // called when spawned work fails
}

// Spawn runs work in a goroutine. An error or a panic of it is fatal for the machine.
func (g *Group) Spawn(what string, work func() error) {
	go func() {
		if err := g.guard(what, work); err != nil {
			g.Fatal(err)
		}
	}()
}

// SpawnOptional runs work that a login does not need in a goroutine: its error is logged. A panic is still fatal, because
// it is a fault of this program and not of the machine's surroundings.
func (g *Group) SpawnOptional(what string, work func() error) {
	g.Spawn(what, func() error {
		if err := work(); err != nil {
			g.Log.Consolef("%s: %v", what, err)
		}
		return nil
	})
}

// Async runs work in a goroutine, as a stage of the timeline, and delivers its error.
func (g *Group) Async(what string, work func() error) <-chan error {
	done := make(chan error, 1)
	ended := g.Marks.Stage(what)
	go func() {
		err := g.guard(what, work)
		if err == nil {
			ended()
		}
		done <- err
	}()
	return done
}

// guard turns a panic into an error with its stack, and prefixes errors with the name of the work.
func (g *Group) guard(what string, work func() error) (err error) {
	defer func() {
		if cause := recover(); cause != nil {
			err = fmt.Errorf("%s: panic: %v\n%s", what, cause, debug.Stack())
		}
	}()
	injectFault(what)
	if err := work(); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}
