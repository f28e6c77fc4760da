package userdata

import (
	"encoding/json"
	"maps"
	"os"
	"reflect"
	"testing"
	"time"
)

// A documentCase is a document that instant_env/user_data.py wrote, with what it says; or, if it is refused, one that it
// does not write.
type documentCase struct {
	Name     string
	Document string
	Refused  bool
	Says     saying
}

// saying has the fields as the document spells them.
type saying struct {
	TTL       int64        `json:"ttl_s"`
	ExpiresAt string       `json:"expires_at"`
	Keys      []string     `json:"ssh_keys"`
	Hostname  string       `json:"hostname"`
	Mounts    []mountWords `json:"mounts"`
	Services  []string     `json:"services"`
	Settings  settingWords `json:"settings"`
}

type settingWords map[string]string

type mountWords struct{ Device, Path, Filesystem, Format, Owner string }

// TestDocumentsOfPython reads the cases that tests/unit/launch/test_user_data.py writes: those in testdata, or those in
// the file that the variable names.
func TestDocumentsOfPython(t *testing.T) {
	file := os.Getenv("INSTANT_ENV_USER_DATA_CASES")
	if file == "" {
		file = "testdata/python.json"
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var cases []documentCase
	if err := json.Unmarshal(text, &cases); err != nil {
		t.Fatal(err)
	}
	for _, c := range cases {
		t.Run(c.Name, func(t *testing.T) {
			data, complaints := Parse([]byte(c.Document))
			switch {
			case c.Refused && len(complaints) == 0:
				t.Errorf("%s: nothing is wrong with it here; Python refuses it", c.Document)
			case !c.Refused && len(complaints) > 0:
				t.Errorf("%s: %q", c.Document, complaints)
			case !c.Refused && !reflect.DeepEqual(words(data), c.Says):
				t.Errorf("%s says\n%+v, Python meant\n%+v", c.Document, words(data), c.Says)
			}
		})
	}
	if len(cases) == 0 {
		t.Error("no cases")
	}
}

// words spells the data as the document does.
func words(data Data) saying {
	said := saying{
		TTL: int64(data.TTL / time.Second), Hostname: data.Hostname,
		Keys: []string{}, Mounts: []mountWords{}, Services: append([]string{}, data.Services...),
		Settings: settingWords{},
	}
	maps.Copy(said.Settings, data.Settings)
	if !data.ExpiresAt.IsZero() {
		said.ExpiresAt = data.ExpiresAt.Format(time.RFC3339)
	}
	for _, key := range data.Keys {
		said.Keys = append(said.Keys, key.String())
	}
	for _, mount := range data.Mounts {
		said.Mounts = append(said.Mounts, mountWords(mount))
	}
	return said
}
