package config_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"instantenv/internal/containerhost/config"
)

func load(t *testing.T, image string, launch map[string]string) (config.Config, error) {
	t.Helper()
	directory := t.TempDir()
	file := filepath.Join(directory, "config.json")
	write(t, file, image)
	for name, value := range launch {
		write(t, filepath.Join(directory, "settings", name), value+"\n")
	}
	return config.Load(file, filepath.Join(directory, "settings"))
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

const baked = `{"image": "team/app", "tag": "v1", "ports": ["80:8080"], "health_interval_s": 300}`

func TestTheLaunchComesBeforeTheImage(t *testing.T) {
	for name, test := range map[string]struct {
		launch     map[string]string
		image, tag string
		ports      []config.Port
	}{
		"nothing":        {nil, "team/app", "v1", []config.Port{{Host: 80, Container: 8080}}},
		"a tag":          {map[string]string{"tag": "v2"}, "team/app", "v2", []config.Port{{Host: 80, Container: 8080}}},
		"another image":  {map[string]string{"image": "other"}, "other", "latest", []config.Port{{Host: 80, Container: 8080}}},
		"the same image": {map[string]string{"image": "team/app"}, "team/app", "v1", []config.Port{{Host: 80, Container: 8080}}},
		"ports":          {map[string]string{"ports": "81:1 82:2"}, "team/app", "v1", []config.Port{{Host: 81, Container: 1}, {Host: 82, Container: 2}}},
	} {
		settings, err := load(t, baked, test.launch)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if settings.Image != test.image || settings.Tag != test.tag || !slices.Equal(settings.Ports, test.ports) {
			t.Errorf("%s: %+v", name, settings)
		}
		if settings.HealthIntervalS != 300 || settings.HealthFailures != 3 {
			t.Errorf("%s: the image's and the default checks are %+v", name, settings)
		}
	}
}

func TestTheLaunchSaysWhereTheEnvironmentComesFrom(t *testing.T) {
	settings, err := load(t, baked, map[string]string{"environment": "ssm", "environment_parameter": "/team/app"})
	if err != nil || settings.Environment != config.EnvironmentSSM || settings.EnvironmentParameter != "/team/app" {
		t.Errorf("%+v, %v", settings, err)
	}
}

func TestWhatIsRefused(t *testing.T) {
	for _, test := range []struct {
		image, reason string
		launch        map[string]string
	}{
		{`{"imgae": "a"}`, "unknown field", nil},
		{`{"image": "team/app:v1 "}`, "without a tag", nil},
		{`{"image": "app", "tag": "$(reboot)"}`, "tag", nil},
		{`{"image": "app", "ports": ["80"]}`, "HOST:CONTAINER", nil},
		{`{"image": "app", "ports": ["80:1", "80:2"]}`, "published twice", nil},
		{`{"image": "app", "ports": ["0:1"]}`, "HOST:CONTAINER", nil},
		{`{"image": "app", "health_interval_s": 0}`, "health_interval_s", nil},
		{`{"image": "app", "health_path": "health"}`, "begin with /", nil},
		{`{"image": "app", "environment": "file"}`, "none, ssh or ssm", nil},
		{`{"image": "app", "environment": "ssm"}`, "environment_parameter", nil},
		{baked, "user data", map[string]string{"tag": "-v"}},
		{baked, "user data", map[string]string{"ports": "99999:1"}},
		{baked, "user data", map[string]string{"image": "UPPER"}},
		{baked, "environment_parameter", map[string]string{"environment": "ssm"}},
	} {
		if _, err := load(t, test.image, test.launch); err == nil || !strings.Contains(err.Error(), test.reason) {
			t.Errorf("%s %v: %v", test.image, test.launch, err)
		}
	}
}
