/*
Container-host runs the one container of a machine of the recipe container-host.

	container-host run                   the service: starts the container, checks it, replaces it
	container-host update [--pull] TAG   roll out another tag of the image, or keep what runs if the new one fails
	container-host environment <FILE     give the container another environment (NAME=VALUE, one per line), the same way
	container-host status [--json]       what runs, and how the last update went
	container-host check FILE            whether a file of settings is valid; prints the image

All but run and check are for root, and talk to the service by its socket. Exit status 0 when it went well, 1 when it did not (a tag that
was not rolled out, a container that is not healthy), 2 when it was called the wrong way.
*/
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"instantenv/internal/containerhost/config"
	"instantenv/internal/containerhost/docker"
	"instantenv/internal/containerhost/host"
	"instantenv/internal/containerhost/runner"
)

// socket is where the service takes requests from root.
const socket = "/run/container-host/socket"

// environmentMost is a bound on what is read of an environment: more than Linux takes in one argument (128 KiB) is a mistake.
const environmentMost = 128 << 10

// tagName is the instance's tag that comes before the image's and the user data's.
const tagName = "instant-env:container-tag"

// userDataLimit is how long a start waits for user data; without it, the image's settings are used.
const userDataLimit = "30"

func main() {
	log.SetFlags(0)
	os.Exit(command(os.Args[1:], os.Stdin, os.Stdout, os.Stderr, socket))
}

func command(arguments []string, stdin io.Reader, stdout, stderr io.Writer, socket string) int {
	caller := &caller{socket, stdout, stderr}
	switch {
	case len(arguments) == 1 && arguments[0] == "run":
		if err := run(); err != nil {
			fmt.Fprintf(stderr, "container-host: %v\n", err)
			return 1
		}
		return 0
	case len(arguments) == 2 && arguments[0] == "update" && config.IsTag(arguments[1]):
		return caller.change("/update", runner.Change{Tag: arguments[1]})
	case len(arguments) == 3 && arguments[0] == "update" && arguments[1] == "--pull" && config.IsTag(arguments[2]):
		return caller.change("/update", runner.Change{Tag: arguments[2], Pull: true})
	case len(arguments) == 1 && arguments[0] == "environment":
		text, err := io.ReadAll(io.LimitReader(bufio.NewReader(stdin), environmentMost+1))
		if err == nil && len(text) > environmentMost {
			err = fmt.Errorf("an environment has %d bytes at most", environmentMost)
		}
		if err != nil {
			fmt.Fprintf(stderr, "container-host: %v\n", err)
			return 1
		}
		return caller.change("/environment", runner.Change{Environment: text})
	case len(arguments) == 1 && arguments[0] == "status":
		return caller.status(false)
	case len(arguments) == 2 && arguments[0] == "status" && arguments[1] == "--json":
		return caller.status(true)
	case len(arguments) == 2 && arguments[0] == "check":
		settings, err := config.Load(arguments[1], "")
		if err != nil {
			fmt.Fprintf(stderr, "container-host: %v\n", err)
			return 1
		}
		fmt.Fprintf(stdout, "%s:%s\n", settings.Image, settings.Tag)
		return 0
	}
	fmt.Fprintln(stderr,
		"usage: container-host run | update [--pull] TAG | environment <FILE | status [--json] | check FILE")
	return 2
}

// run is the service.
func run() error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	machine := host.New()
	settings, err := load(ctx, machine)
	if err != nil {
		machine.Phase(runner.PhaseLoaded, runner.Failed, err.Error())
		return err
	}
	kept := runner.New(settings, docker.New(docker.Socket), machine, runner.StatePath)
	for _, directory := range []string{filepath.Dir(socket), filepath.Dir(string(runner.StatePath))} {
		if err := os.MkdirAll(directory, 0o700); err != nil {
			return err
		}
	}
	_ = os.Remove(socket)
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	server := &http.Server{Handler: kept.Handler(), BaseContext: func(net.Listener) context.Context { return ctx }}
	go func() {
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			machine.Logf("the socket takes no requests any more: %v", err)
		}
	}()
	defer server.Close()
	return kept.Run(ctx)
}

// load reads the settings of the image, of the user data, and of the instance's tag, each before the one in front of it.
func load(ctx context.Context, machine *host.Host) (config.Config, error) {
	output, err := exec.CommandContext(ctx, "/usr/sbin/instant-init", "await", "user-data", userDataLimit).CombinedOutput()
	if err != nil {
		machine.Logf("user data: %v: %s", err, output)
	}
	settings, err := config.Load(config.File, config.LaunchDirectory)
	if err != nil {
		return settings, err
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	tag, err := machine.AWS.Tag(ctx, tagName)
	switch {
	case err != nil:
		machine.Logf("the instance's tags: %v", err)
	case tag == "":
	case config.IsTag(tag):
		settings.Tag = tag
	default:
		machine.Logf("the instance's tag %s is no container tag; running %s", tagName, settings.Tag)
	}
	return settings, nil
}

// A caller asks the service.
type caller struct {
	socket         string
	stdout, stderr io.Writer
}

func (c *caller) ask(method, path string, body any, answer any) error {
	client := &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var dialer net.Dialer
			return dialer.DialContext(ctx, "unix", c.socket)
		},
	}}
	reader, writer := io.Pipe()
	go func() { writer.CloseWithError(json.NewEncoder(writer).Encode(body)) }()
	request, err := http.NewRequest(method, "http://container-host"+path, reader)
	if err != nil {
		return err
	}
	response, err := client.Do(request)
	if err != nil {
		return fmt.Errorf("the service does not answer at %s (are you root, and does it run?): %w", c.socket, err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		var refusal struct{ Error string }
		if err := json.NewDecoder(response.Body).Decode(&refusal); err != nil {
			return fmt.Errorf("the service answered with status %d", response.StatusCode)
		}
		return errors.New(refusal.Error)
	}
	return json.NewDecoder(response.Body).Decode(answer)
}

func (c *caller) change(path string, change runner.Change) int {
	var outcome runner.Outcome
	if err := c.ask(http.MethodPost, path, change, &outcome); err != nil {
		fmt.Fprintf(c.stderr, "container-host: %v\n", err)
		return 1
	}
	if !outcome.OK {
		fmt.Fprintf(c.stderr, "container-host: not rolled out: %s\n", outcome.Error)
		if outcome.Logs != "" {
			fmt.Fprintf(c.stderr, "its last lines:\n%s\n", outcome.Logs)
		}
		return 1
	}
	gap := "no port is published"
	if outcome.GapMS >= 0 {
		gap = fmt.Sprintf("gap %.0f ms, tried every %.0f ms", outcome.GapMS, outcome.ProbeMS)
	}
	fmt.Fprintf(c.stdout, "%s runs, after %d ms; %s\n", outcome.Tag, outcome.TookMS, gap)
	return 0
}

func (c *caller) status(asJSON bool) int {
	var status runner.Status
	if err := c.ask(http.MethodGet, "/status", nil, &status); err != nil {
		fmt.Fprintf(c.stderr, "container-host: %v\n", err)
		return 1
	}
	if asJSON {
		encoder := json.NewEncoder(c.stdout)
		encoder.SetIndent("", "  ")
		if err := encoder.Encode(status); err != nil {
			return 1
		}
	} else {
		fmt.Fprintf(c.stdout, "%s:%s is %s since %s; %d restarts", status.Image, status.Tag, status.State,
			status.Since.Format(time.RFC3339), status.Restarts)
		if status.Reason != "" {
			fmt.Fprintf(c.stdout, "; last reason: %s", status.Reason)
		}
		fmt.Fprintln(c.stdout)
	}
	if status.State != runner.Healthy {
		return 1
	}
	return 0
}
