// Package host is the machine that a container runs on: its firewall, its files, and what it can ask.
package host

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"time"

	"instantenv/internal/containerhost/aws"
	"instantenv/internal/containerhost/config"
	"instantenv/internal/containerhost/docker"
	"instantenv/internal/containerhost/firewall"
	"instantenv/internal/containerhost/runner"
)

// EnvironmentFile has the container's environment, for root alone.
const EnvironmentFile = "/etc/container-host/environment"

// initProgram records the machine's phases.
const initProgram = "/usr/sbin/instant-init"

// phaseLimit is for recording one phase.
const phaseLimit = 10 * time.Second

// A Host implements runner.Machine.
type Host struct {
	Firewall        firewall.Firewall
	AWS             *aws.Client
	EnvironmentFile string
	Record          func(name, state, reason string) error // of a phase

	mutex  sync.Mutex
	phases map[string]string
}

// New is this machine.
func New() *Host {
	return &Host{
		Firewall: firewall.Firewall{Run: firewall.Command}, AWS: aws.New(), EnvironmentFile: EnvironmentFile,
		Record: record, phases: map[string]string{},
	}
}

func record(name, state, reason string) error {
	ctx, cancel := context.WithTimeout(context.Background(), phaseLimit)
	defer cancel()
	output, err := exec.CommandContext(ctx, initProgram, "phase", name, state, reason).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, strings.TrimSpace(string(output)))
	}
	return nil
}

// Publish is part of runner.Machine.
func (h *Host) Publish(ctx context.Context, ports []config.Port, address string) error {
	return h.Firewall.Publish(ctx, ports, address)
}

// checker asks containers: without a proxy, each time by a new connection, and without following redirections.
var checker = &http.Client{
	Transport:     &http.Transport{DisableKeepAlives: true},
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
}

// Check is good when a container answers with a status below 400, or for tcp:// when it accepts a connection.
func (h *Host) Check(ctx context.Context, address string) error {
	target, err := url.Parse(address)
	if err != nil {
		return err
	}
	if target.Scheme == "tcp" {
		return connect(ctx, target.Host)
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return err
	}
	answer, err := checker.Do(request)
	if err != nil {
		var cause *url.Error
		if errors.As(err, &cause) {
			err = cause.Err
		}
		return err
	}
	defer answer.Body.Close()
	if answer.StatusCode >= http.StatusBadRequest {
		return fmt.Errorf("%s answered with status %d", target.Path, answer.StatusCode)
	}
	return nil
}

// Connect tries a published port on the address that the machine has towards others.
func (h *Host) Connect(ctx context.Context, port int) error {
	// Nothing is sent: connecting a datagram socket chooses the source address.
	route, err := net.Dial("udp4", "192.0.2.1:9")
	if err != nil {
		return err
	}
	route.Close()
	own := route.LocalAddr().(*net.UDPAddr).IP.String()
	return connect(ctx, net.JoinHostPort(own, strconv.Itoa(port)))
}

func connect(ctx context.Context, address string) error {
	var dialer net.Dialer
	connection, err := dialer.DialContext(ctx, "tcp4", address)
	if err != nil {
		return err
	}
	return connection.Close()
}

// Phase records a phase when it is another than before: a container that fails every 30 s would fill the console.
func (h *Host) Phase(name, state, reason string) {
	h.mutex.Lock()
	defer h.mutex.Unlock()
	if h.phases[name] == state+reason {
		return
	}
	if err := h.Record(name, state, reason); err != nil {
		h.Logf("phase %s is %s (%s), which cannot be recorded: %v", name, state, reason, err)
		return
	}
	h.phases[name] = state + reason
}

// Environment is part of runner.Machine. No error has a value of it.
func (h *Host) Environment(ctx context.Context, settings config.Config) ([]string, error) {
	switch settings.Environment {
	case config.EnvironmentSSH:
		text, err := os.ReadFile(h.EnvironmentFile)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, errors.New(
				"waiting for the environment: send it by `ssh MACHINE sudo container-host environment <FILE`")
		}
		if err != nil {
			return nil, err
		}
		return ParseEnvironment(string(text))
	case config.EnvironmentSSM:
		text, err := h.AWS.Parameter(ctx, settings.EnvironmentParameter)
		if err != nil {
			return nil, err
		}
		return ParseEnvironment(text)
	}
	return nil, nil
}

// SaveEnvironment is part of runner.Machine.
func (h *Host) SaveEnvironment(text []byte) error {
	if _, err := ParseEnvironment(string(text)); err != nil {
		return err
	}
	return runner.WriteFile(h.EnvironmentFile, text, 0o600)
}

// ParseEnvironment reads lines of NAME=VALUE as `docker run --env-file` does: a value is all that follows the first =, quotes
// and $ included; empty lines and those that begin with # are left out. An error names a line by its number alone.
func ParseEnvironment(text string) ([]string, error) {
	var variables []string
	for number, line := range strings.Split(text, "\n") {
		line = strings.TrimSuffix(line, "\r")
		if trimmed := strings.TrimSpace(line); trimmed == "" || trimmed[0] == '#' {
			continue
		}
		line = strings.TrimLeft(line, " \t")
		name, _, ok := strings.Cut(line, "=")
		if !ok || name == "" || strings.ContainsAny(name, " \t") || strings.ContainsRune(line, 0) {
			return nil, fmt.Errorf("line %d of the environment is not NAME=VALUE", number+1)
		}
		variables = append(variables, line)
	}
	return variables, nil
}

// Login is part of runner.Machine.
func (h *Host) Login(ctx context.Context, settings config.Config) (*docker.Login, error) {
	if !settings.ECRLogin {
		return nil, nil
	}
	registry, _, _ := strings.Cut(settings.Image, "/")
	return h.AWS.RegistryLogin(ctx, registry)
}

// Region is part of runner.Machine.
func (h *Host) Region(ctx context.Context) (string, error) { return h.AWS.Region(ctx) }

// Logf is part of runner.Machine. The service manager keeps what it writes, bounded.
func (h *Host) Logf(format string, arguments ...any) { log.Printf(format, arguments...) }
