package runner

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"instantenv/internal/containerhost/config"
	"instantenv/internal/containerhost/docker"
)

// start makes sure of the image and starts a container of it, which nobody outside the machine reaches yet.
func (r *Runner) start(ctx context.Context, tag string, pull bool) (*instance, error) {
	if r.Settings.Image == "" {
		err := errors.New("no container image is named: neither the recipe nor the launch's user data has one")
		r.Machine.Phase(PhaseLoaded, Failed, err.Error())
		return nil, err
	}
	if err := r.load(ctx, tag, pull); err != nil {
		r.Machine.Phase(PhaseLoaded, Failed, err.Error())
		return nil, err
	}
	r.Machine.Phase(PhaseLoaded, Done, "")
	current, err := r.run(ctx, tag)
	if err != nil {
		r.Machine.Phase(PhaseService, Failed, err.Error())
		return nil, err
	}
	r.Machine.Phase(PhaseService, Done, "")
	return current, nil
}

// load pulls the image unless the machine has it, for what was baked in needs no registry; with pull, it does anyway.
func (r *Runner) load(ctx context.Context, tag string, pull bool) error {
	reference := r.Settings.Image + ":" + tag
	if _, err := r.Docker.ImageID(ctx, reference); !pull && !docker.IsNotFound(err) {
		return err
	}
	r.Machine.Phase(PhaseLoaded, Running, "pulling "+reference)
	login, err := r.Machine.Login(ctx, r.Settings)
	if err != nil {
		return fmt.Errorf("cannot log in to the registry of %s: %w", r.Settings.Image, err)
	}
	return r.Docker.Pull(ctx, r.Settings.Image, tag, login)
}

// spec is what a container of a tag is made of, and its image's id.
func (r *Runner) spec(ctx context.Context, tag string) (docker.Spec, string, error) {
	reference := r.Settings.Image + ":" + tag
	image, err := r.Docker.ImageID(ctx, reference)
	if err != nil {
		return docker.Spec{}, "", err
	}
	environment, err := r.Machine.Environment(ctx, r.Settings)
	if err != nil {
		return docker.Spec{}, "", err
	}
	spec := docker.Spec{
		Image: reference, Environment: environment, LogDriver: "json-file",
		LogOptions: map[string]string{
			"max-size": r.Settings.LogMaxSize, "max-file": fmt.Sprint(r.Settings.LogMaxFiles),
		},
	}
	if r.Settings.AWSLogs != "" {
		region, err := r.Machine.Region(ctx)
		if err != nil {
			return docker.Spec{}, "", err
		}
		spec.LogDriver = "awslogs"
		spec.LogOptions = map[string]string{"awslogs-group": r.Settings.AWSLogs, "awslogs-region": region}
	}
	text, err := json.Marshal([]any{image, spec})
	if err != nil {
		return docker.Spec{}, "", err
	}
	digest := sha256.Sum256(text)
	spec.Labels = map[string]string{label: "true", specLabel: hex.EncodeToString(digest[:])}
	return spec, image, nil
}

func (r *Runner) run(ctx context.Context, tag string) (*instance, error) {
	spec, image, err := r.spec(ctx, tag)
	if err != nil {
		return nil, err
	}
	name := "container-host-" + strings.ToLower(rand.Text()[:8])
	id, err := r.Docker.Create(ctx, name, spec)
	if err != nil {
		return nil, err
	}
	current := &instance{
		id: id, name: name, image: image, tag: tag, environment: spec.Environment, begun: time.Now(),
	}
	r.remember("")
	if err := r.Docker.Start(ctx, id); err != nil {
		r.remove(current)
		return nil, err
	}
	container, err := r.Docker.Inspect(ctx, id)
	if err == nil && !container.Running {
		err = fmt.Errorf("%s:%s ended at once: %s", r.Settings.Image, tag, describe(container))
	} else if err == nil && container.Address == "" {
		err = fmt.Errorf("%s:%s has no address on Docker's bridge", r.Settings.Image, tag)
	}
	if err != nil {
		r.remember(r.lastLines(ctx, current))
		r.remove(current)
		return nil, err
	}
	current.address = container.Address
	return current, nil
}

// remove takes away a container that is of no use, even when the runner is about to end.
func (r *Runner) remove(one *instance) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := r.Docker.Remove(ctx, one.id); err != nil {
		r.Machine.Logf("cannot remove %s: %v", one.name, err)
	}
}

func describe(container docker.Container) string {
	switch {
	case container.Error != "":
		return container.Error
	case container.OOM:
		return "out of memory"
	default:
		return fmt.Sprintf("exit status %d", container.Exit)
	}
}

// lines of a container's log that explain its end, and the shortest secret that is looked for in them.
const (
	lines       = 20
	secretLeast = 4
)

// lastLines is the end of a container's log, without the values of its environment.
func (r *Runner) lastLines(ctx context.Context, one *instance) string {
	text, err := r.Docker.Logs(ctx, one.id, lines)
	if err != nil {
		return ""
	}
	for _, variable := range one.environment {
		if _, value, _ := strings.Cut(variable, "="); len(value) >= secretLeast {
			text = strings.ReplaceAll(text, value, "***")
		}
	}
	return strings.TrimSpace(text)
}

// healthURL is where a container is asked; without a check, its first published port; "" when there is neither.
func (r *Runner) healthURL(address string) string {
	switch {
	case r.Settings.HealthPort != 0:
		return fmt.Sprintf("http://%s:%d%s", address, r.Settings.HealthPort, r.Settings.HealthPath)
	case len(r.Settings.Ports) > 0:
		return fmt.Sprintf("tcp://%s:%d", address, r.Settings.Ports[0].Container)
	}
	return ""
}

// check asks a container once.
func (r *Runner) check(ctx context.Context, one *instance) error {
	url := r.healthURL(one.address)
	if url == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, config.Seconds(r.Settings.HealthTimeoutS))
	defer cancel()
	return r.Machine.Check(ctx, url)
}
