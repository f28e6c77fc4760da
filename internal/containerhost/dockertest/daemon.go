// Package dockertest stands in for Docker's daemon in tests: it answers by HTTP as the Engine API of 20.10 (1.41) is
// documented to, keeps containers and images, and fails or hangs on demand.
package dockertest

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

// Version is the API's that the daemon says it has.
const Version = "1.41"

// A Container is one that the daemon keeps.
type Container struct {
	ID, Name, Image string // Image is a reference
	Labels          map[string]string
	Env             []string
	LogType         string
	LogOptions      map[string]string
	Running         bool
	Exit            int
	Address         string
	Created         int64
	Stopped         string // how it was stopped: "", "stop", "kill"
	ended           chan struct{}
}

// A Daemon is the stand-in. Its fields may be changed between requests, with Lock.
type Daemon struct {
	sync.Mutex
	Images     map[string]string // reference: id
	Registry   map[string]string // reference: id, what a pull finds
	Containers []*Container
	Requests   []string          // "METHOD /path" without the version
	Auth       string            // X-Registry-Auth of the latest pull
	Fails      map[string]string // "METHOD /path" prefix: message of a 500
	Hangs      map[string]bool   // "METHOD /path" prefix: never answered
	Ends       map[string]int    // image reference: exit status, at once after its start
	Logs       map[string]string // image reference: its output

	made int
}

// New has no images and no containers.
func New() *Daemon {
	return &Daemon{
		Images: map[string]string{}, Registry: map[string]string{}, Fails: map[string]string{}, Hangs: map[string]bool{},
		Ends: map[string]int{}, Logs: map[string]string{},
	}
}

// Dial connects to the daemon within the process, without a socket.
func (d *Daemon) Dial(context.Context) (net.Conn, error) {
	client, server := net.Pipe()
	go d.Serve(&single{connection: server, done: make(chan struct{})})
	return client, nil
}

// Serve answers on a listener until it is closed.
func (d *Daemon) Serve(listener net.Listener) {
	_ = (&http.Server{Handler: d}).Serve(listener)
}

// ServeHTTP answers one request.
func (d *Daemon) ServeHTTP(w http.ResponseWriter, request *http.Request) {
	w.Header().Set("Api-Version", Version)
	path, versioned := strings.CutPrefix(request.URL.Path, "/v"+Version)
	asked := request.Method + " " + path
	d.Lock()
	if path != "/_ping" {
		d.Requests = append(d.Requests, asked)
	}
	failure, hangs := "", false
	for prefix, message := range d.Fails {
		if strings.HasPrefix(asked, prefix) {
			failure = message
		}
	}
	for prefix := range d.Hangs {
		hangs = hangs || strings.HasPrefix(asked, prefix)
	}
	d.Unlock()
	switch {
	case hangs:
		// The server sees that a client goes away once the body has been read.
		_, _ = io.Copy(io.Discard, request.Body)
		<-request.Context().Done()
	case failure != "":
		refuse(w, http.StatusInternalServerError, failure)
	case path == "/_ping":
		fmt.Fprint(w, "OK")
	case !versioned:
		refuse(w, http.StatusBadRequest, "client version is missing")
	default:
		d.answer(w, request, asked)
	}
}

func (d *Daemon) answer(w http.ResponseWriter, request *http.Request, asked string) {
	parts := strings.Split(strings.Trim(strings.SplitN(asked, " ", 2)[1], "/"), "/")
	last := parts[len(parts)-1]
	switch {
	case asked == "POST /images/create":
		d.pull(w, request)
	case asked == "POST /images/prune":
		respond(w, http.StatusOK, map[string]any{"ImagesDeleted": nil, "SpaceReclaimed": 0})
	case parts[0] == "images" && request.Method == http.MethodGet:
		d.image(w, strings.Join(parts[1:len(parts)-1], "/"))
	case parts[0] == "images" && request.Method == http.MethodDelete:
		d.removeImage(w, strings.Join(parts[1:], "/"))
	case asked == "POST /containers/create":
		d.create(w, request)
	case asked == "GET /containers/json":
		d.list(w, request)
	case parts[0] == "containers" && len(parts) >= 2:
		d.container(w, request, parts[1], last)
	default:
		refuse(w, http.StatusNotFound, "page not found")
	}
}

func (d *Daemon) pull(w http.ResponseWriter, request *http.Request) {
	query := request.URL.Query()
	reference := query.Get("fromImage") + ":" + query.Get("tag")
	d.Lock()
	defer d.Unlock()
	d.Auth = request.Header.Get("X-Registry-Auth")
	w.Header().Set("Content-Type", "application/json")
	fmt.Fprintf(w, "{\"status\":\"Pulling from %s\"}\r\n", query.Get("fromImage"))
	id, ok := d.Registry[reference]
	if !ok {
		message := "manifest for " + reference + " not found: manifest unknown: manifest unknown"
		_ = json.NewEncoder(w).Encode(map[string]any{
			"errorDetail": map[string]string{"message": message}, "error": message,
		})
		return
	}
	d.Images[reference] = id
}

func (d *Daemon) image(w http.ResponseWriter, reference string) {
	d.Lock()
	defer d.Unlock()
	if id, ok := d.Images[reference]; ok {
		respond(w, http.StatusOK, map[string]any{"Id": id, "RepoTags": []string{reference}})
		return
	}
	refuse(w, http.StatusNotFound, "No such image: "+reference)
}

func (d *Daemon) removeImage(w http.ResponseWriter, reference string) {
	d.Lock()
	defer d.Unlock()
	if _, ok := d.Images[reference]; !ok {
		refuse(w, http.StatusNotFound, "No such image: "+reference)
		return
	}
	for _, one := range d.Containers {
		if one.Image == reference && one.Running {
			refuse(w, http.StatusConflict, "conflict: unable to remove repository reference "+reference)
			return
		}
	}
	delete(d.Images, reference)
	respond(w, http.StatusOK, []map[string]string{{"Untagged": reference}})
}

func (d *Daemon) create(w http.ResponseWriter, request *http.Request) {
	var body struct {
		Image      string
		Env        []string
		Labels     map[string]string
		HostConfig struct {
			RestartPolicy struct{ Name string }
			PortBindings  map[string]any
			LogConfig     struct {
				Type   string
				Config map[string]string
			}
		}
	}
	if err := json.NewDecoder(request.Body).Decode(&body); err != nil {
		refuse(w, http.StatusBadRequest, err.Error())
		return
	}
	d.Lock()
	defer d.Unlock()
	if _, ok := d.Images[body.Image]; !ok {
		refuse(w, http.StatusNotFound, "No such image: "+body.Image)
		return
	}
	if policy := body.HostConfig.RestartPolicy.Name; policy != "no" || len(body.HostConfig.PortBindings) > 0 {
		refuse(w, http.StatusBadRequest, "a second supervisor: restart policy "+policy)
		return
	}
	d.made++
	made := &Container{
		ID: fmt.Sprintf("%064x", d.made), Name: request.URL.Query().Get("name"), Image: body.Image, Labels: body.Labels,
		Env: body.Env, Created: int64(d.made), LogType: body.HostConfig.LogConfig.Type,
		LogOptions: body.HostConfig.LogConfig.Config, ended: make(chan struct{}),
	}
	d.Containers = append(d.Containers, made)
	respond(w, http.StatusCreated, map[string]any{"Id": made.ID, "Warnings": []string{}})
}

func (d *Daemon) list(w http.ResponseWriter, request *http.Request) {
	var wanted struct{ Label []string }
	if err := json.Unmarshal([]byte(request.URL.Query().Get("filters")), &wanted); err != nil {
		refuse(w, http.StatusBadRequest, "invalid filter")
		return
	}
	d.Lock()
	defer d.Unlock()
	answer := []map[string]any{}
	for _, one := range d.Containers {
		_, labelled := one.Labels[wanted.Label[0]]
		if labelled && (one.Running || request.URL.Query().Get("all") == "true") {
			answer = append(answer, map[string]any{"Id": one.ID, "Created": one.Created})
		}
	}
	respond(w, http.StatusOK, answer)
}

func (d *Daemon) container(w http.ResponseWriter, request *http.Request, id, verb string) {
	d.Lock()
	defer d.Unlock()
	at := slices.IndexFunc(d.Containers, func(one *Container) bool { return one.ID == id })
	if at < 0 {
		refuse(w, http.StatusNotFound, "No such container: "+id)
		return
	}
	one := d.Containers[at]
	switch {
	case request.Method == http.MethodDelete:
		d.end(one, 137, "kill")
		d.Containers = slices.Delete(d.Containers, at, at+1)
		w.WriteHeader(http.StatusNoContent)
	case verb == "start":
		d.start(w, one)
	case verb == "stop" && one.Running:
		d.end(one, 143, "stop")
		w.WriteHeader(http.StatusNoContent)
	case verb == "stop":
		w.WriteHeader(http.StatusNotModified)
	case verb == "wait":
		d.wait(w, request, one)
	case verb == "logs":
		w.Header().Set("Content-Type", "application/vnd.docker.raw-stream")
		text := d.Logs[one.Image]
		_, _ = w.Write(append(binary.BigEndian.AppendUint32([]byte{1, 0, 0, 0}, uint32(len(text))), text...))
	case verb == "json":
		respond(w, http.StatusOK, describe(one, d.Images[one.Image]))
	default:
		refuse(w, http.StatusNotFound, "page not found")
	}
}

func (d *Daemon) start(w http.ResponseWriter, one *Container) {
	one.Running, one.ended = true, make(chan struct{})
	one.Address = fmt.Sprintf("172.17.0.%d", 1+one.Created)
	if status, ok := d.Ends[one.Image]; ok {
		d.end(one, status, "")
	}
	w.WriteHeader(http.StatusNoContent)
}

func (d *Daemon) wait(w http.ResponseWriter, request *http.Request, one *Container) {
	if one.Running {
		ended := one.ended
		d.Unlock()
		select {
		case <-ended:
		case <-request.Context().Done():
		}
		d.Lock()
	}
	respond(w, http.StatusOK, map[string]any{"StatusCode": one.Exit})
}

func (d *Daemon) end(one *Container, status int, how string) {
	if one.Running {
		one.Running, one.Exit, one.Address, one.Stopped = false, status, "", how
		close(one.ended)
	}
}

// End lets the one container that runs end by itself.
func (d *Daemon) End(status int) {
	d.Lock()
	defer d.Unlock()
	for _, one := range d.Containers {
		d.end(one, status, "")
	}
}

// Running returns copies of the containers that run, the oldest first.
func (d *Daemon) Running() []Container {
	d.Lock()
	defer d.Unlock()
	var running []Container
	for _, one := range d.Containers {
		if one.Running {
			running = append(running, *one)
		}
	}
	return running
}

// Change changes the stand-in between two requests.
func (d *Daemon) Change(change func()) {
	d.Lock()
	defer d.Unlock()
	change()
}

func describe(one *Container, image string) map[string]any {
	return map[string]any{
		"Id": one.ID, "Name": "/" + one.Name, "Image": image, "Config": map[string]any{"Labels": one.Labels},
		"State": map[string]any{
			"Running": one.Running, "ExitCode": one.Exit, "OOMKilled": false, "Error": "",
			"StartedAt": time.Time{}.Format(time.RFC3339Nano),
		},
		"NetworkSettings": map[string]any{
			"Networks": map[string]any{"bridge": map[string]any{"IPAddress": one.Address}},
		},
	}
}

func respond(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body)
}

func refuse(w http.ResponseWriter, status int, message string) {
	respond(w, status, map[string]string{"message": message})
}

// A single is a listener with one connection.
type single struct {
	connection net.Conn
	once       sync.Once
	done       chan struct{}
}

func (s *single) Accept() (net.Conn, error) {
	var taken net.Conn
	s.once.Do(func() { taken = &closing{s.connection, sync.OnceFunc(func() { close(s.done) })} })
	if taken != nil {
		return taken, nil
	}
	<-s.done
	return nil, net.ErrClosed
}

func (s *single) Close() error   { return nil }
func (s *single) Addr() net.Addr { return s.connection.LocalAddr() }

type closing struct {
	net.Conn
	closed func()
}

func (c *closing) Close() error {
	c.closed()
	return c.Conn.Close()
}
