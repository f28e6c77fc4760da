package imds

import (
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	tokenPath   = "/latest/api/token"
	tokenHeader = "x-aws-ec2-metadata-token"
	ttlHeader   = "x-aws-ec2-metadata-token-ttl-seconds"
)

// errorPage is the small XHTML page of EC2's error answers.
func errorPage(status int) response {
	title := strconv.Itoa(status) + " - " + statusText(status)
	return response{status: status, contentType: "text/html", body: []byte(
		`<?xml version="1.0" encoding="iso-8859-1"?>
<!DOCTYPE html PUBLIC "-//W3C//DTD XHTML 1.0 Transitional//EN"
	"http://www.w3.org/TR/xhtml1/DTD/xhtml1-transitional.dtd">
<html xmlns="http://www.w3.org/1999/xhtml" xml:lang="en" lang="en">
 <head>
  <title>` + title + `</title>
 </head>
 <body>
  <h1>` + title + `</h1>
 </body>
</html>
`)}
}

// otherMethod answers OPTIONS with the methods there are, and any other with 405.
func otherMethod(req *request, methods string) response {
	status := 405
	if req.method == "OPTIONS" {
		status = 200
	}
	return response{status: status, contentType: "text/plain", headers: []string{"Allow: OPTIONS, " + methods}}
}

// answer decides in this order: faults, endpoint, method, token, path.
func (s *Server) answer(req *request) response {
	m, err := s.load()
	if err != nil {
		return response{status: 500, contentType: "text/plain", body: []byte(err.Error() + "\n"), close: true}
	}
	if m.FaultDelayMS > 0 {
		time.Sleep(time.Duration(m.FaultDelayMS) * time.Millisecond)
	}
	if m.FaultStatus != 0 {
		return errorPage(m.FaultStatus)
	}
	res := s.respond(m, req)
	if m.FaultAnswer != "" {
		res.broken, res.close = m.FaultAnswer, true
	}
	return res
}

// Values of fault_answer.
const (
	refused   = "refused"
	truncated = "truncated"
	garbage   = "garbage"
)

// Refuses reports whether new connections are to be refused, which the caller has to do. Established ones end with the
// next request.
func (s *Server) Refuses() bool {
	m, err := s.load()
	return err == nil && m.FaultAnswer == refused
}

// respond answers when no fault is injected.
func (s *Server) respond(m *metadata, req *request) response {
	if m.HTTPEndpoint == "disabled" {
		return errorPage(403)
	}
	if strings.TrimSuffix(req.path, "/") == tokenPath {
		if req.method != "PUT" {
			return otherMethod(req, "PUT")
		}
		res := s.grant(m, req)
		res.ttl = m.HopLimit
		return res
	}
	if req.method != "GET" && req.method != "HEAD" {
		return otherMethod(req, "GET, HEAD")
	}
	token, presented := req.headers[tokenHeader]
	if (presented || m.HTTPTokens == "required") && !validToken(m.tokenKey, token, s.now()) {
		return errorPage(401)
	}
	return s.lookUp(m, req)
}

// grant answers the PUT of IMDSv2. A request that came through a proxy is refused, as on EC2: that
// is what keeps an open proxy from handing out the instance's credentials.
func (s *Server) grant(m *metadata, req *request) response {
	if _, forwarded := req.headers["x-forwarded-for"]; forwarded {
		return errorPage(403)
	}
	ttl, err := strconv.Atoi(req.headers[ttlHeader])
	if err != nil || ttl < 1 || ttl > maxTokenTTL {
		return errorPage(400)
	}
	return response{
		status: 200, contentType: "text/plain",
		headers: []string{"X-Aws-Ec2-Metadata-Token-Ttl-Seconds: " + strconv.Itoa(ttl)},
		body:    []byte(newToken(m.tokenKey, s.now().Add(time.Duration(ttl)*time.Second))),
	}
}

// lookUp serves the paths below / for a caller that may read them.
func (s *Server) lookUp(m *metadata, req *request) response {
	path := strings.FieldsFunc(req.path, func(c rune) bool { return c == '/' })
	found := response{status: 200, contentType: "text/plain", modified: m.modified}
	text, ok := "", true
	switch {
	case len(path) == 0:
		text = strings.Join(versions, "\n")
	case !slices.Contains(versions, path[0]):
		ok = false
	case len(path) == 1:
		text = m.top(path[0])
	case path[1] == "meta-data":
		text, ok = m.metaData(path[0], path[2:], s.now())
	case path[1] == "user-data" && len(path) == 2 && m.UserData != nil:
		found.contentType, text = "application/octet-stream", string(m.userDataBytes)
	case path[1] == "dynamic" && path[0] >= dynamicSince:
		text, ok = m.dynamic(path[2:])
	default:
		ok = false
	}
	if !ok {
		return errorPage(404)
	}
	found.body = []byte(text)
	return found
}

// top lists what a version has.
func (m *metadata) top(version string) string {
	names := []string{"meta-data"}
	if version >= dynamicSince {
		names = []string{"dynamic", "meta-data"}
	}
	if m.UserData != nil {
		names = append(names, "user-data")
	}
	return strings.Join(names, "\n")
}

// dynamic has the identity document. EC2's signatures of it (pkcs7, rsa2048, signature) are neither
// listed nor served: only AWS can make them.
func (m *metadata) dynamic(path []string) (string, bool) {
	if m.document == "" {
		return "", false
	}
	switch strings.Join(path, "/") {
	case "":
		return "instance-identity/", true
	case "instance-identity":
		return "document", true
	case "instance-identity/document":
		return m.document, true
	}
	return "", false
}
