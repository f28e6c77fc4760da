package docker

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// A Spec is a container to be made.
type Spec struct {
	Image       string
	Environment []string // KEY=VALUE
	Labels      map[string]string
	LogDriver   string
	LogOptions  map[string]string
}

// A Container is one as the daemon describes it.
type Container struct {
	ID      string
	Name    string
	Image   string // the image's id
	Labels  map[string]string
	Running bool
	Exit    int
	OOM     bool
	Error   string // why it could not be started
	Address string // on the default bridge; "" unless it runs
	Started time.Time
}

// Create makes a container and returns its id. It publishes no ports, and Docker never starts it again by itself.
func (c *Client) Create(ctx context.Context, name string, spec Spec) (string, error) {
	body := map[string]any{
		"Image":  spec.Image,
		"Env":    spec.Environment,
		"Labels": spec.Labels,
		"HostConfig": map[string]any{
			"NetworkMode":   "bridge",
			"RestartPolicy": map[string]any{"Name": "no"},
			"LogConfig":     map[string]any{"Type": spec.LogDriver, "Config": spec.LogOptions},
		},
	}
	var made struct {
		ID string `json:"Id"`
	}
	err := c.call(ctx, callLimit, http.MethodPost, "/containers/create", url.Values{"name": {name}}, body, &made)
	return made.ID, err
}

// Start starts a container; one that runs already is no error (the API answers 304).
func (c *Client) Start(ctx context.Context, id string) error {
	return c.call(ctx, callLimit, http.MethodPost, "/containers/"+id+"/start", nil, nil, nil)
}

// Stop sends SIGTERM, and SIGKILL after grace.
func (c *Client) Stop(ctx context.Context, id string, grace time.Duration) error {
	query := url.Values{"t": {strconv.Itoa(int(grace.Seconds()))}}
	return c.call(ctx, grace+callLimit, http.MethodPost, "/containers/"+id+"/stop", query, nil, nil)
}

// Remove kills a container if it runs, and removes it with its anonymous volumes. One that is gone is no error.
func (c *Client) Remove(ctx context.Context, id string) error {
	query := url.Values{"force": {"true"}, "v": {"true"}}
	err := c.call(ctx, callLimit, http.MethodDelete, "/containers/"+id, query, nil, nil)
	if IsNotFound(err) {
		return nil
	}
	return err
}

// Wait returns the exit status of a container when it does not run any more.
func (c *Client) Wait(ctx context.Context, id string) (int, error) {
	var end struct {
		StatusCode int
		Error      *struct{ Message string }
	}
	// As long as it takes: a daemon that ends closes the connection.
	const forever = 100 * 365 * 24 * time.Hour
	err := c.call(ctx, forever, http.MethodPost, "/containers/"+id+"/wait", nil, nil, &end)
	if err == nil && end.Error != nil && end.Error.Message != "" {
		err = fmt.Errorf("docker: wait: %s", end.Error.Message)
	}
	return end.StatusCode, err
}

// Inspect describes a container.
func (c *Client) Inspect(ctx context.Context, id string) (Container, error) {
	var answer struct {
		ID     string `json:"Id"`
		Name   string
		Image  string
		Config struct{ Labels map[string]string }
		State  struct {
			Running   bool
			OOMKilled bool
			ExitCode  int
			Error     string
			StartedAt time.Time
		}
		NetworkSettings struct {
			Networks map[string]struct{ IPAddress string }
		}
	}
	if err := c.call(ctx, callLimit, http.MethodGet, "/containers/"+id+"/json", nil, nil, &answer); err != nil {
		return Container{}, err
	}
	return Container{
		ID: answer.ID, Name: strings.TrimPrefix(answer.Name, "/"), Image: answer.Image, Labels: answer.Config.Labels,
		Running: answer.State.Running, Exit: answer.State.ExitCode, OOM: answer.State.OOMKilled, Error: answer.State.Error,
		Address: answer.NetworkSettings.Networks["bridge"].IPAddress, Started: answer.State.StartedAt,
	}, nil
}

// WithLabel returns the ids of all containers that have a label, running or not, the newest first.
func (c *Client) WithLabel(ctx context.Context, label string) ([]string, error) {
	query := filters("label", label)
	query.Set("all", "true")
	var answer []struct {
		ID      string `json:"Id"`
		Created int64
	}
	if err := c.call(ctx, callLimit, http.MethodGet, "/containers/json", query, nil, &answer); err != nil {
		return nil, err
	}
	slices.SortStableFunc(answer, func(a, b struct {
		ID      string `json:"Id"`
		Created int64
	}) int {
		return int(b.Created - a.Created)
	})
	ids := make([]string, len(answer))
	for i, one := range answer {
		ids[i] = one.ID
	}
	return ids, nil
}

// logLimit bounds what is read of a container's log.
const logLimit = 64 << 10

// Logs returns the last lines of a container's output.
func (c *Client) Logs(ctx context.Context, id string, lines int) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	query := url.Values{"stdout": {"true"}, "stderr": {"true"}, "tail": {strconv.Itoa(lines)}}
	answer, err := c.versioned(ctx, http.MethodGet, "/containers/"+id+"/logs", query, nil, nil)
	if err != nil {
		return "", err
	}
	defer answer.Body.Close()
	return demultiplex(io.LimitReader(answer.Body, logLimit)), nil
}

// demultiplex joins the frames of a stream: one byte of stream, three of zeros, four of length, and the bytes (the API's
// "Stream format" of ContainerAttach; containers of ours have no terminal, whose output would be without frames).
func demultiplex(stream io.Reader) string {
	var text strings.Builder
	for {
		var header [8]byte
		if _, err := io.ReadFull(stream, header[:]); err != nil {
			return text.String()
		}
		length := int64(binary.BigEndian.Uint32(header[4:]))
		if copied, err := io.CopyN(&text, stream, length); err != nil || copied < length {
			return text.String()
		}
	}
}
