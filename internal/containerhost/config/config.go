// Package config reads what a container host runs: what the image bakes in, with what the launch named on top.
package config

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// Where the recipe puts its settings, and where those of a launch's user data arrive, each in a file of its name.
const (
	File            = "/etc/container-host/config.json"
	LaunchDirectory = "/run/instant-env/settings"
)

// Patterns of what comes from outside. A tag is that of the distribution specification ("Pulling manifests").
var (
	imagePattern = regexp.MustCompile(`^[a-z0-9][a-z0-9._:/-]*[a-z0-9]$`)
	tagPattern   = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$`)
)

// Where the container's environment comes from.
const (
	EnvironmentNone = "none"
	EnvironmentSSH  = "ssh"
	EnvironmentSSM  = "ssm"
)

// A Config is one container and how it is kept.
type Config struct {
	Image string `json:"image"` // without its tag
	Tag   string `json:"tag"`
	Ports []Port `json:"ports"`

	HealthPort      int    `json:"health_port"` // of the container; 0: no check
	HealthPath      string `json:"health_path"`
	HealthIntervalS int    `json:"health_interval_s"`
	HealthFailures  int    `json:"health_failures"`
	HealthGraceS    int    `json:"health_grace_s"`
	HealthTimeoutS  int    `json:"health_timeout_s"`

	StopTimeoutS int `json:"stop_timeout_s"` // between SIGTERM and SIGKILL
	SettleS      int `json:"settle_s"`       // how long a new container is watched before the old one goes

	Environment          string `json:"environment"`
	EnvironmentParameter string `json:"environment_parameter"` // of Systems Manager

	LogMaxSize  string `json:"log_max_size"`
	LogMaxFiles int    `json:"log_max_files"`
	AWSLogs     string `json:"aws_logs_group"` // CloudWatch's log group; "": files on the machine
	ECRLogin    bool   `json:"ecr_login"`
	KeepImages  int    `json:"keep_images"` // tags of the image that stay beside the one that runs
}

// A Port is one published TCP port.
type Port struct{ Host, Container int }

// UnmarshalText parses HOST:CONTAINER.
func (p *Port) UnmarshalText(text []byte) error {
	host, container, ok := strings.Cut(string(text), ":")
	var errs [2]error
	p.Host, errs[0] = strconv.Atoi(host)
	p.Container, errs[1] = strconv.Atoi(container)
	if !ok || errors.Join(errs[:]...) != nil || !isPort(p.Host) || !isPort(p.Container) {
		return fmt.Errorf("port %.32q must be HOST:CONTAINER, as 80:8080", text)
	}
	return nil
}

// MarshalText is the inverse of UnmarshalText.
func (p Port) MarshalText() ([]byte, error) {
	return fmt.Appendf(nil, "%d:%d", p.Host, p.Container), nil
}

func isPort(number int) bool { return number >= 1 && number <= 65535 }

// Seconds is a number of them as a duration.
func Seconds(count int) time.Duration { return time.Duration(count) * time.Second }

// Default is what a file that names only an image gets.
func Default() Config {
	return Config{
		Tag: "latest", HealthPath: "/", HealthIntervalS: 10, HealthFailures: 3, HealthGraceS: 30, HealthTimeoutS: 5,
		StopTimeoutS: 10, SettleS: 5, Environment: EnvironmentNone, LogMaxSize: "10m", LogMaxFiles: 3, KeepImages: 1,
	}
}

// A Launch is what user data may choose. What it leaves out, the image decides.
type Launch struct {
	Image, Tag                        string
	Ports                             []Port // nil: as the image says
	Environment, EnvironmentParameter string
}

// Load reads the image's file and, where there is one, the launch's. An unknown key of the image's file is an error, for it
// is baked together with this program.
func Load(file, launchDirectory string) (Config, error) {
	settings := Default()
	text, err := os.ReadFile(file)
	if err != nil {
		return settings, err
	}
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&settings); err != nil {
		return settings, fmt.Errorf("%s: %w", file, err)
	}
	if err := settings.check(); err != nil {
		return settings, fmt.Errorf("%s: %w", file, err)
	}
	launch, err := readLaunch(launchDirectory)
	if err == nil {
		settings.Apply(launch)
		err = settings.check()
	}
	if err != nil {
		return settings, fmt.Errorf("user data: settings: %w", err)
	}
	return settings, nil
}

func readLaunch(directory string) (Launch, error) {
	var values [5]string
	for i, name := range []string{"image", "tag", "ports", "environment", "environment_parameter"} {
		text, err := os.ReadFile(filepath.Join(directory, name))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return Launch{}, err
		}
		values[i] = strings.TrimSpace(string(text))
	}
	launch := Launch{Image: values[0], Tag: values[1], Environment: values[3], EnvironmentParameter: values[4]}
	for _, text := range strings.Fields(values[2]) {
		var port Port
		if err := port.UnmarshalText([]byte(text)); err != nil {
			return Launch{}, err
		}
		launch.Ports = append(launch.Ports, port)
	}
	return launch, nil
}

// Apply puts a launch's choices on top. Another image without a tag has not the baked one's.
func (c *Config) Apply(launch Launch) {
	if launch.Image != "" && launch.Image != c.Image {
		c.Image, c.Tag = launch.Image, "latest"
	}
	if launch.Tag != "" {
		c.Tag = launch.Tag
	}
	if launch.Ports != nil {
		c.Ports = launch.Ports
	}
	if launch.Environment != "" {
		c.Environment = launch.Environment
	}
	if launch.EnvironmentParameter != "" {
		c.EnvironmentParameter = launch.EnvironmentParameter
	}
}

// IsTag reports whether text can be the tag of a container image.
func IsTag(text string) bool { return tagPattern.MatchString(text) }

func (c *Config) check() error {
	if c.Image != "" && !imagePattern.MatchString(c.Image) {
		return fmt.Errorf("image %.200q must be a name without a tag, as ghcr.io/team/app", c.Image)
	}
	if !IsTag(c.Tag) {
		return fmt.Errorf("tag %.200q must be up to 128 letters, digits, dots, dashes and underscores", c.Tag)
	}
	taken := map[int]bool{}
	for _, port := range c.Ports {
		if taken[port.Host] {
			return fmt.Errorf("port %d of the machine is published twice", port.Host)
		}
		taken[port.Host] = true
	}
	if c.HealthPort != 0 && !isPort(c.HealthPort) {
		return fmt.Errorf("health_port must be 1 to 65535, or 0 for no check, not %d", c.HealthPort)
	}
	if !strings.HasPrefix(c.HealthPath, "/") {
		return fmt.Errorf("health_path %.200q must begin with /", c.HealthPath)
	}
	for name, value := range map[string]int{
		"health_interval_s": c.HealthIntervalS, "health_failures": c.HealthFailures, "health_timeout_s": c.HealthTimeoutS,
		"log_max_files": c.LogMaxFiles,
	} {
		if value < 1 {
			return fmt.Errorf("%s must be 1 or more, not %d", name, value)
		}
	}
	switch c.Environment {
	case EnvironmentNone, EnvironmentSSH:
		return nil
	case EnvironmentSSM:
		if c.EnvironmentParameter == "" {
			return errors.New("environment ssm needs environment_parameter, the name of a parameter of Systems Manager")
		}
		return nil
	}
	return fmt.Errorf("environment must be none, ssh or ssm, not %.64q", c.Environment)
}
