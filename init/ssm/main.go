/*
Instant-ssm prints the SSH public keys that a parameter of AWS Systems Manager holds, one per line.

	instant-ssm PARAMETER

It asks with the credentials of the machine's instance profile, whose role needs ssm:GetParameter on the parameter (and
kms:Decrypt for a SecureString of a key of one's own), at the region's public endpoint, by TLS with the certificate
authorities of the system. instant-init runs it in images of recipes that say ssm_keys; it is a program of its own because
TLS would more than double the size of process 1.

Exit status 0 when all of the parameter is keys, 1 when there are none, 2 when it was called the wrong way. What a
parameter holds is never part of a message: it may be the wrong parameter.
*/
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"instantenv/init/internal/imds"
	"instantenv/init/internal/sshkey"
	"instantenv/internal/sigv4"
)

// Limits of time: for everything, and for one request; and the pause between tries.
const (
	limit        = 60 * time.Second
	requestLimit = 10 * time.Second
	pause        = time.Second
)

// answerLimit is more than a parameter can hold (8 KiB, advanced tier) with JSON around it.
const answerLimit = 64 << 10

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

func run(args []string, stdout, stderr io.Writer) int {
	if len(args) != 1 || strings.HasPrefix(args[0], "-") {
		fmt.Fprintln(stderr, "usage: instant-ssm PARAMETER")
		return 2
	}
	machine := imds.New(imds.Default)
	defer machine.Close()
	asker := &asker{machine: machine, client: &http.Client{Timeout: requestLimit}, pause: pause}
	keys, err := asker.keys(args[0], time.Now().Add(limit))
	if err != nil {
		fmt.Fprintf(stderr, "instant-ssm: %s: %v\n", args[0], err)
		return 1
	}
	for _, key := range keys {
		fmt.Fprintln(stdout, key)
	}
	return 0
}

// An asker gets parameters.
type asker struct {
	machine  *imds.Client
	client   *http.Client
	endpoint string // "": the region's own
	pause    time.Duration
}

// errFinal is an answer that would not change: a parameter that is not there, a role that may not.
var errFinal = errors.New("refused")

func (a *asker) keys(name string, deadline time.Time) ([]sshkey.PublicKey, error) {
	for {
		value, err := a.parameter(name, deadline)
		if err == nil {
			keys, err := sshkey.ParsePublicKeys(value)
			if err != nil {
				return nil, errors.New("it holds something else than public keys")
			}
			return keys, nil
		}
		if errors.Is(err, errFinal) || !time.Now().Add(a.pause).Before(deadline) {
			return nil, err
		}
		time.Sleep(a.pause)
	}
}

// parameter asks once.
func (a *asker) parameter(name string, deadline time.Time) (string, error) {
	region, role, err := a.whoAndWhere(deadline)
	if err != nil {
		return "", err
	}
	credentials, err := a.credentials(role, deadline)
	if err != nil {
		return "", err
	}
	endpoint := a.endpoint
	if endpoint == "" {
		domain, err := a.item("/latest/meta-data/services/domain", deadline)
		if err != nil {
			return "", err
		}
		endpoint = "https://ssm." + region + "." + domain
	}
	body, err := json.Marshal(map[string]any{"Name": name, "WithDecryption": true})
	if err != nil {
		return "", err
	}
	request, err := http.NewRequest(http.MethodPost, endpoint+"/", bytes.NewReader(body))
	if err != nil {
		return "", err
	}
	request.Header.Set("Content-Type", "application/x-amz-json-1.1")
	request.Header.Set("X-Amz-Target", "AmazonSSM.GetParameter")
	// By the metadata service's clock: AWS takes no signature that is five minutes off, and nothing sets ours.
	now := a.machine.Date()
	if now.IsZero() {
		now = time.Now()
	}
	sigv4.Sign(request, body, credentials, region, "ssm", now)
	return a.send(request)
}

func (a *asker) send(request *http.Request) (string, error) {
	answer, err := a.client.Do(request)
	if err != nil {
		return "", err
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(io.LimitReader(answer.Body, answerLimit))
	if err != nil {
		return "", err
	}
	var content struct {
		Parameter struct{ Value string }
		Type      string `json:"__type"`
	}
	if err := json.Unmarshal(text, &content); err != nil {
		return "", fmt.Errorf("status %d, and no JSON", answer.StatusCode)
	}
	if answer.StatusCode == http.StatusOK {
		return content.Parameter.Value, nil
	}
	// AWS JSON 1.1 names the error in __type, sometimes with a namespace before a #.
	kind := content.Type[strings.LastIndex(content.Type, "#")+1:]
	final := answer.StatusCode == http.StatusBadRequest && kind != "ThrottlingException" && kind != "ExpiredTokenException"
	if final {
		return "", fmt.Errorf("%w: %.100s", errFinal, kind)
	}
	return "", fmt.Errorf("status %d %.100s", answer.StatusCode, kind)
}

func (a *asker) whoAndWhere(deadline time.Time) (region, role string, err error) {
	if region, err = a.item("/latest/meta-data/placement/region", deadline); err != nil {
		return "", "", err
	}
	listed, err := a.item(rolesPath, deadline)
	role, _, _ = strings.Cut(listed, "\n")
	return region, role, err
}

func (a *asker) item(path string, deadline time.Time) (string, error) {
	text, err := a.machine.Get(path, deadline)
	return strings.TrimSpace(string(text)), err
}

const rolesPath = "/latest/meta-data/iam/security-credentials/"

func (a *asker) credentials(role string, deadline time.Time) (sigv4.Credentials, error) {
	var found sigv4.Credentials
	text, err := a.machine.Get(rolesPath+role, deadline)
	if err != nil {
		return found, err
	}
	if err := json.Unmarshal(text, &found); err != nil || found.SecretAccessKey == "" {
		return found, fmt.Errorf("no credentials of role %.64q (code %.40q)", role, found.Code)
	}
	return found, nil
}
