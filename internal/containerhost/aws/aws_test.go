package aws_test

import (
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"instantenv/internal/containerhost/aws"
)

// cloud is the metadata service, Systems Manager and ECR in one.
type cloud struct {
	items    map[string]string
	status   int
	answer   string
	requests []string
}

func (c *cloud) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	path, metadata := strings.CutPrefix(r.URL.Path, "/latest/meta-data/")
	item, there := c.items[path]
	switch {
	case r.URL.Path == "/latest/api/token" && r.Method == http.MethodPut:
		fmt.Fprint(w, "token")
	case metadata && r.Header.Get("X-aws-ec2-metadata-token") != "token":
		w.WriteHeader(http.StatusUnauthorized)
	case metadata && there:
		fmt.Fprintln(w, item)
	case metadata:
		w.WriteHeader(http.StatusNotFound)
	default:
		body, _ := io.ReadAll(r.Body)
		signed := strings.HasPrefix(r.Header.Get("Authorization"), "AWS4-HMAC-SHA256 Credential=ASIA/")
		c.requests = append(c.requests, fmt.Sprintf("%s %s %t", r.Header.Get("X-Amz-Target"), body, signed))
		w.WriteHeader(c.status)
		fmt.Fprint(w, c.answer)
	}
}

func serve(t *testing.T, c *cloud) *aws.Client {
	server := httptest.NewServer(c)
	t.Cleanup(server.Close)
	if c.items == nil {
		c.items = map[string]string{
			"placement/region": "eu-west-1", "services/domain": "amazonaws.com", "iam/security-credentials/": "role",
			"iam/security-credentials/role":           `{"Code":"Success","AccessKeyId":"ASIA","SecretAccessKey":"s","Token":"t"}`,
			"tags/instance/instant-env:container-tag": "v7",
		}
	}
	client := aws.New()
	client.Metadata = server.URL
	client.Endpoint = func(_, region, domain string) string {
		if region != "eu-west-1" || domain != "amazonaws.com" {
			t.Errorf("region %s, domain %s", region, domain)
		}
		return server.URL
	}
	return client
}

func TestTheTagOfTheInstance(t *testing.T) {
	client := serve(t, &cloud{})
	if tag, err := client.Tag(t.Context(), "instant-env:container-tag"); tag != "v7" || err != nil {
		t.Errorf("%q, %v", tag, err)
	}
	if tag, err := client.Tag(t.Context(), "other"); tag != "" || err != nil {
		t.Errorf("one that is not there: %q, %v", tag, err)
	}
}

func TestAParameter(t *testing.T) {
	served := &cloud{status: http.StatusOK, answer: `{"Parameter":{"Value":"A=secret\n"}}`}
	value, err := serve(t, served).Parameter(t.Context(), "/team/app")
	if value != "A=secret\n" || err != nil {
		t.Errorf("%q, %v", value, err)
	}
	if want := `AmazonSSM.GetParameter {"Name":"/team/app","WithDecryption":true} true`; served.requests[0] != want {
		t.Error(served.requests)
	}
}

func TestARefusalIsNamedAndNothingElseOfTheAnswer(t *testing.T) {
	for name, test := range map[string]struct {
		served cloud
		reason string
	}{
		"denied": {
			cloud{status: http.StatusBadRequest, answer: `{"__type":"com.amazonaws#AccessDeniedException","message":"secret"}`},
			"AccessDeniedException",
		},
		"no JSON": {cloud{status: http.StatusOK, answer: "secret"}, "documented form"},
		"empty":   {cloud{status: http.StatusOK, answer: "{}"}, "has no value"},
		"no role": {
			cloud{items: map[string]string{"placement/region": "eu-west-1", "services/domain": "amazonaws.com"}},
			"has no role",
		},
	} {
		_, err := serve(t, &test.served).Parameter(t.Context(), "/team/app")
		if err == nil || !strings.Contains(err.Error(), test.reason) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestARegistryLogin(t *testing.T) {
	token := base64.StdEncoding.EncodeToString([]byte("AWS:word"))
	served := &cloud{status: http.StatusOK, answer: `{"authorizationData":[{"authorizationToken":"` + token + `"}]}`}
	login, err := serve(t, served).RegistryLogin(t.Context(), "1.dkr.ecr.eu-west-1.amazonaws.com")
	if err != nil || login.Username != "AWS" || login.Password != "word" || !strings.HasPrefix(login.Server, "1.dkr") {
		t.Errorf("%+v, %v", login, err)
	}
	served.answer = `{"authorizationData":[{"authorizationToken":"****"}]}`
	if _, err := serve(t, served).RegistryLogin(t.Context(), "x"); err == nil {
		t.Error("no base64, and no error")
	}
}
