// App is the program in the containers of the tests: it says which version it is, and fails as it is asked to.
package main

import (
	"crypto/sha256"
	"fmt"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"time"
)

func main() {
	var hangs atomic.Bool
	http.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, os.Getenv("VERSION")) })
	http.HandleFunc("/health", func(w http.ResponseWriter, r *http.Request) {
		if os.Getenv("BROKEN") != "" {
			http.Error(w, "broken", http.StatusInternalServerError)
		}
		if hangs.Load() {
			<-r.Context().Done()
		}
	})
	http.HandleFunc("/hang", func(http.ResponseWriter, *http.Request) { hangs.Store(true) })
	http.HandleFunc("/exit", func(http.ResponseWriter, *http.Request) { os.Exit(3) })
	http.HandleFunc("/caller", func(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, r.RemoteAddr) })
	// That the secret is there is shown by its digest, so that no answer has it.
	http.HandleFunc("/secret", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, "%x\n", sha256.Sum256([]byte(os.Getenv("SECRET"))))
	})
	http.HandleFunc("/metadata", func(w http.ResponseWriter, _ *http.Request) {
		client := http.Client{Timeout: 5 * time.Second}
		request, err := http.NewRequest(http.MethodPut, "http://169.254.169.254/latest/api/token", strings.NewReader(""))
		if err != nil {
			panic(err)
		}
		request.Header.Set("X-aws-ec2-metadata-token-ttl-seconds", "60")
		answer, err := client.Do(request)
		if err != nil {
			fmt.Fprintln(w, "unreachable:", err)
			return
		}
		answer.Body.Close()
		fmt.Fprintln(w, "reached:", answer.Status)
	})
	fmt.Println(http.ListenAndServe(":8080", nil))
	os.Exit(1)
}
