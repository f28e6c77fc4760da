package docker

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"
)

// pullLimit is for one image; a hung registry must not hold a machine for ever.
const pullLimit = 30 * time.Minute

// A Login is what a registry asks for.
type Login struct {
	Username string `json:"username"`
	Password string `json:"password"`
	Server   string `json:"serveraddress"`
}

// ImageID returns the id of an image that the machine has.
func (c *Client) ImageID(ctx context.Context, reference string) (string, error) {
	var answer struct {
		ID string `json:"Id"`
	}
	err := c.call(ctx, callLimit, http.MethodGet, "/images/"+reference+"/json", nil, nil, &answer)
	return answer.ID, err
}

// Pull fetches an image. The daemon answers 200 before it begins: an error comes as a line of the answer.
func (c *Client) Pull(ctx context.Context, image, tag string, login *Login) error {
	ctx, cancel := context.WithTimeout(ctx, pullLimit)
	defer cancel()
	headers := map[string]string{}
	if login != nil {
		text, err := json.Marshal(login)
		if err != nil {
			return err
		}
		headers["X-Registry-Auth"] = base64.URLEncoding.EncodeToString(text)
	}
	query := url.Values{"fromImage": {image}, "tag": {tag}}
	answer, err := c.versioned(ctx, http.MethodPost, "/images/create", query, nil, headers)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	decoder := json.NewDecoder(answer.Body)
	for {
		var line struct{ Error string }
		if err := decoder.Decode(&line); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("docker: pull %s:%s: %w", image, tag, err)
		}
		if line.Error != "" {
			return fmt.Errorf("docker: pull %s:%s: %s", image, tag, line.Error)
		}
	}
}

// RemoveImage takes away a tag, and the layers that nothing else uses.
func (c *Client) RemoveImage(ctx context.Context, reference string) error {
	err := c.call(ctx, callLimit, http.MethodDelete, "/images/"+reference, nil, nil, nil)
	if IsNotFound(err) {
		return nil
	}
	return err
}

// PruneImages removes images that have no tag and no container.
func (c *Client) PruneImages(ctx context.Context) error {
	return c.call(ctx, pullLimit, http.MethodPost, "/images/prune", filters("dangling", "true"), nil, nil)
}
