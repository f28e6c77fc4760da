package supervisor

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"instantenv/init/internal/json"
)

const servicesDirectory = "/etc/instant-init/services"

// A Service is a program that runs for as long as the machine does, as its file declares it.
type Service struct {
	Name        string   // of the file, without .json
	Argv        []string // the program by its absolute path, and its arguments
	Environment []string // NAME=value, on top of PATH
	Start       string   // always (the default) or named: only if user data names it
	After       []string // services that are started before, and stopped after it
	Mounts      []string // mount points that it waits for
	Restart     string   // always (the default), on-failure or never
}

const (
	startAlways, startNamed                     = "always", "named"
	restartAlways, restartOnFailure, restartNot = "always", "on-failure", "never"
)

// loadServices reads all declarations, in the order of their names. An invalid one is left out, and complaints has its
// error.
func loadServices(directory string) (found []Service, complaints []error) {
	files, _ := filepath.Glob(filepath.Join(directory, "*.json")) // the only error is a bad pattern
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err == nil {
			var declared Service
			if declared, err = parseService(strings.TrimSuffix(filepath.Base(file), ".json"), text); err == nil {
				found = append(found, declared)
				continue
			}
		}
		complaints = append(complaints, fmt.Errorf("%s: %w", file, err))
	}
	return found, complaints
}

func parseService(name string, text []byte) (Service, error) {
	declared := Service{Name: name, Start: startAlways, Restart: restartAlways}
	document, err := json.Parse(text)
	if err != nil {
		return Service{}, err
	}
	members, isObject := document.(map[string]any)
	if !isObject {
		return Service{}, errors.New("not an object")
	}
	for field, value := range members {
		if !declared.set(field, value) {
			return Service{}, fmt.Errorf("%.60q is not known, or has a value of the wrong type", field)
		}
	}
	switch {
	case name == SSHD:
		return Service{}, errors.New("the name is taken")
	case len(declared.Argv) == 0 || !filepath.IsAbs(declared.Argv[0]):
		return Service{}, errors.New("argv does not begin with an absolute path")
	case declared.Start != startAlways && declared.Start != startNamed:
		return Service{}, fmt.Errorf("start is %q, not %s or %s", declared.Start, startAlways, startNamed)
	case declared.Restart != restartAlways && declared.Restart != restartOnFailure && declared.Restart != restartNot:
		return Service{}, fmt.Errorf("restart is %q, not %s, %s or %s", declared.Restart, restartAlways,
			restartOnFailure, restartNot)
	}
	for _, path := range declared.Mounts {
		if !filepath.IsAbs(path) {
			return Service{}, fmt.Errorf("mounts: %q is not an absolute path", path)
		}
	}
	return declared, nil
}

func (s *Service) set(field string, value any) (ok bool) {
	switch field {
	case "argv":
		s.Argv, ok = stringList(value)
	case "environment":
		variables, isObject := value.(map[string]any)
		for name, value := range variables {
			text, isText := value.(string)
			if !isText || name == "" || strings.ContainsAny(name, "=\x00") || strings.Contains(text, "\x00") {
				return false
			}
			s.Environment = append(s.Environment, name+"="+text)
		}
		ok = isObject
	case "start":
		s.Start, ok = value.(string)
	case "after":
		s.After, ok = stringList(value)
	case "mounts":
		s.Mounts, ok = stringList(value)
	case "restart":
		s.Restart, ok = value.(string)
	}
	return ok
}

func stringList(value any) (found []string, ok bool) {
	list, ok := value.([]any)
	for _, item := range list {
		text, isText := item.(string)
		if !isText {
			return nil, false
		}
		found = append(found, text)
	}
	return found, ok
}

// chooseServices picks what is to run, in the order of starting: those that always start and those that are named,
// with what they come after. Order follows names where `after` does not say otherwise.
func chooseServices(declared []Service, named []string) (chosen []Service, complaints []error) {
	byName := map[string]Service{}
	for _, s := range declared {
		byName[s.Name] = s
	}
	const visiting, done = 1, 2
	state := map[string]int{}
	var visit func(name, wanted string)
	visit = func(name, wanted string) {
		s, known := byName[name]
		switch {
		case !known:
			complaints = append(complaints, fmt.Errorf("%s: there is no service %q", wanted, name))
		case state[name] == visiting:
			complaints = append(complaints, fmt.Errorf("%s: it and %q are after each other", wanted, name))
		case state[name] == 0:
			state[name] = visiting
			for _, earlier := range s.After {
				visit(earlier, name)
			}
			state[name] = done
			chosen = append(chosen, s)
		}
	}
	for _, s := range declared {
		if s.Start == startAlways || slices.Contains(named, s.Name) {
			visit(s.Name, "services")
		}
	}
	for _, name := range named {
		if state[name] == 0 {
			visit(name, "user data")
		}
	}
	return chosen, complaints
}

// StartServices starts the services of the image and of user data that do not run yet, each after those in its "after". It
// returns at once, so that it never delays the boot.
func (v *Supervisor) StartServices(named []string) {
	declared, complaints := loadServices(servicesDirectory)
	chosen, more := chooseServices(declared, named)
	v.mutex.Lock()
	defer v.mutex.Unlock()
	for _, complaint := range append(complaints, more...) {
		if text := complaint.Error(); !slices.Contains(v.complaints, text) {
			v.complaints = append(v.complaints, text)
			v.Log.Consolef("services: %s", text)
		}
	}
	if v.begun == nil {
		v.begun = map[string]chan struct{}{}
	}
	for _, s := range chosen {
		if v.begun[s.Name] != nil {
			continue
		}
		var before []chan struct{}
		for _, earlier := range s.After {
			if begun := v.begun[earlier]; begun != nil {
				before = append(before, begun)
			}
		}
		begun := make(chan struct{})
		v.begun[s.Name] = begun
		v.Tasks.Spawn("service "+s.Name, func() error {
			for _, earlier := range before {
				<-earlier
			}
			v.Delegate()
			v.waitForMounts(s)
			run := &Supervised{Service: s, Log: NewServiceLog(s.Name, nil)}
			return v.Supervise(run, func() { close(begun) })
		})
	}
}

// waitForMounts returns when all the service's mount points have a file system.
func (v *Supervisor) waitForMounts(s Service) {
	for _, path := range s.Mounts {
		for tries := 0; !isMountPoint(path); tries++ {
			if tries == 100 {
				v.Log.Consolef("service %s waits for a file system on %s", s.Name, path)
			}
			time.Sleep(100 * time.Millisecond)
		}
	}
}

func isMountPoint(path string) bool {
	var here, above syscall.Stat_t
	return syscall.Stat(path, &here) == nil && syscall.Stat(path+"/..", &above) == nil && here.Dev != above.Dev
}
