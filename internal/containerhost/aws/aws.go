// Package aws asks the metadata service, and with the instance's role Systems Manager and ECR.
//
// The calls to AWS were tested against servers within the tests. Nothing of them has run on AWS, and localec2 serves
// neither to its guests.
package aws

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"instantenv/internal/containerhost/docker"
	"instantenv/internal/sigv4"
)

// Metadata is where EC2's metadata service is.
const Metadata = "http://169.254.169.254"

// Limits of a question's time and of an answer's size. A parameter has 8 KiB at most (advanced tier).
const (
	limit       = 10 * time.Second
	answerLimit = 64 << 10
)

// errAbsent is the metadata service's 404.
var errAbsent = errors.New("not there")

// A Client asks for one machine.
type Client struct {
	Metadata string
	HTTP     *http.Client
	Endpoint func(service, region, domain string) string // of a service of AWS
}

// New is for a machine of EC2. The metadata service is never asked through a proxy.
func New() *Client {
	return &Client{
		Metadata: Metadata,
		HTTP:     &http.Client{Timeout: limit, Transport: &http.Transport{DisableKeepAlives: true}},
		Endpoint: func(service, region, domain string) string {
			return "https://" + service + "." + region + "." + domain
		},
	}
}

// Tag returns the value of one of the instance's tags, "" when it has none or does not show them.
func (c *Client) Tag(ctx context.Context, name string) (string, error) {
	value, err := c.item(ctx, "tags/instance/"+url.PathEscape(name))
	if errors.Is(err, errAbsent) {
		return "", nil
	}
	return value, err
}

// Region is the machine's.
func (c *Client) Region(ctx context.Context) (string, error) { return c.item(ctx, "placement/region") }

// Parameter returns the value of a parameter of Systems Manager, decrypted.
func (c *Client) Parameter(ctx context.Context, name string) (string, error) {
	var answer struct{ Parameter struct{ Value string } }
	err := c.call(ctx, "ssm", "ssm", "AmazonSSM.GetParameter",
		map[string]any{"Name": name, "WithDecryption": true}, &answer)
	if err == nil && answer.Parameter.Value == "" {
		err = errors.New("the answer has no value")
	}
	if err != nil {
		return "", fmt.Errorf("parameter %s: %w", name, err)
	}
	return answer.Parameter.Value, nil
}

// RegistryLogin returns ECR's login for a registry; it is good for 12 hours (API_GetAuthorizationToken).
func (c *Client) RegistryLogin(ctx context.Context, registry string) (*docker.Login, error) {
	var answer struct {
		AuthorizationData []struct {
			AuthorizationToken string `json:"authorizationToken"`
		} `json:"authorizationData"`
	}
	err := c.call(ctx, "api.ecr", "ecr", "AmazonEC2ContainerRegistry_V20150921.GetAuthorizationToken",
		map[string]any{}, &answer)
	if err != nil {
		return nil, err
	}
	if len(answer.AuthorizationData) != 1 {
		return nil, errors.New("ECR's answer has no token")
	}
	text, err := base64.StdEncoding.DecodeString(answer.AuthorizationData[0].AuthorizationToken)
	user, password, ok := strings.Cut(string(text), ":")
	if err != nil || !ok {
		return nil, errors.New("ECR's token is not a name and a password")
	}
	return &docker.Login{Username: user, Password: password, Server: registry}, nil
}

// call sends an action of AWS JSON 1.1. No error has anything of an answer but the name of the refusal.
func (c *Client) call(ctx context.Context, host, service, target string, body, answer any) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var region, domain string
	var by sigv4.Credentials
	err := c.items(ctx, map[string]*string{"placement/region": &region, "services/domain": &domain})
	if err == nil {
		by, err = c.credentials(ctx)
	}
	if err != nil {
		return err
	}
	text, err := json.Marshal(body)
	if err != nil {
		return err
	}
	request, err := http.NewRequestWithContext(
		ctx, http.MethodPost, c.Endpoint(host, region, domain)+"/", bytes.NewReader(text))
	if err != nil {
		return err
	}
	request.Header.Set("Content-Type", "application/x-amz-json-1.1")
	request.Header.Set("X-Amz-Target", target)
	sigv4.Sign(request, text, by, region, service, time.Now())
	response, err := c.HTTP.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	content, err := io.ReadAll(io.LimitReader(response.Body, answerLimit))
	if err != nil {
		return err
	}
	if response.StatusCode != http.StatusOK {
		var refusal struct {
			Type string `json:"__type"`
		}
		_ = json.Unmarshal(content, &refusal)
		return fmt.Errorf("status %d %.100s", response.StatusCode, refusal.Type[strings.LastIndex(refusal.Type, "#")+1:])
	}
	if json.Unmarshal(content, answer) != nil {
		return errors.New("the answer is no JSON of the documented form")
	}
	return nil
}

func (c *Client) credentials(ctx context.Context) (sigv4.Credentials, error) {
	const path = "iam/security-credentials/"
	var credentials sigv4.Credentials
	roles, err := c.item(ctx, path)
	if errors.Is(err, errAbsent) {
		return credentials, errors.New("the instance has no role: launch it with an instance profile")
	}
	if err != nil {
		return credentials, err
	}
	role, _, _ := strings.Cut(roles, "\n")
	text, err := c.item(ctx, path+role)
	if err != nil {
		return credentials, err
	}
	if json.Unmarshal([]byte(text), &credentials) != nil || credentials.SecretAccessKey == "" {
		return credentials, fmt.Errorf("no credentials of role %.64q (code %.40q)", role, credentials.Code)
	}
	return credentials, nil
}

func (c *Client) items(ctx context.Context, wanted map[string]*string) error {
	for path, into := range wanted {
		var err error
		if *into, err = c.item(ctx, path); err != nil {
			return err
		}
	}
	return nil
}

// item reads one item by IMDSv2.
func (c *Client) item(ctx context.Context, path string) (string, error) {
	token, err := c.ask(ctx, http.MethodPut, "/latest/api/token", "X-aws-ec2-metadata-token-ttl-seconds", "60")
	if err != nil {
		return "", err
	}
	return c.ask(ctx, http.MethodGet, "/latest/meta-data/"+path, "X-aws-ec2-metadata-token", token)
}

func (c *Client) ask(ctx context.Context, method, path, header, value string) (string, error) {
	request, err := http.NewRequestWithContext(ctx, method, c.Metadata+path, nil)
	if err != nil {
		return "", err
	}
	request.Header.Set(header, value)
	response, err := c.HTTP.Do(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(io.LimitReader(response.Body, answerLimit))
	switch {
	case err != nil:
		return "", err
	case response.StatusCode == http.StatusNotFound:
		return "", fmt.Errorf("metadata service: %s: %w", path, errAbsent)
	case response.StatusCode != http.StatusOK:
		return "", fmt.Errorf("metadata service: %s: status %d", path, response.StatusCode)
	}
	return strings.TrimSpace(string(text)), nil
}
