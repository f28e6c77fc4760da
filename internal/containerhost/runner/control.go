package runner

import (
	"encoding/json"
	"net/http"
)

// A Change is the body of a request to the control socket.
type Change struct {
	Tag         string `json:"tag,omitempty"`
	Pull        bool   `json:"pull,omitempty"`
	Environment []byte `json:"environment,omitempty"`
}

// Handler serves the control socket: POST /update and /environment, GET /status.
func (r *Runner) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) { answer(w, r.Status(), nil) })
	mux.HandleFunc("POST /update", decoded(func(req *http.Request, change Change) (Outcome, error) {
		return r.Update(req.Context(), change.Tag, change.Pull)
	}))
	mux.HandleFunc("POST /environment", decoded(func(req *http.Request, change Change) (Outcome, error) {
		return r.SetEnvironment(req.Context(), change.Environment)
	}))
	return mux
}

func decoded(do func(*http.Request, Change) (Outcome, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, request *http.Request) {
		var change Change
		if err := json.NewDecoder(request.Body).Decode(&change); err != nil {
			answer(w, nil, err)
			return
		}
		outcome, err := do(request, change)
		answer(w, outcome, err)
	}
}

func answer(w http.ResponseWriter, body any, err error) {
	w.Header().Set("Content-Type", "application/json")
	if err != nil {
		w.WriteHeader(http.StatusConflict)
		body = map[string]string{"error": err.Error()}
	}
	_ = json.NewEncoder(w).Encode(body)
}
