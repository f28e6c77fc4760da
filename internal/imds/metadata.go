package imds

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
)

const schemaVersion = 1

// metadata is the file that localec2 writes for one instance; README.md describes every field.
type metadata struct {
	Version       int               `json:"version"`
	TokenKeyHex   string            `json:"token_key"`
	HTTPTokens    string            `json:"http_tokens"`
	HTTPEndpoint  string            `json:"http_endpoint"`
	InstanceTags  bool              `json:"instance_tags"`
	Tags          map[string]string `json:"tags"`
	UserData      *string           `json:"user_data_base64"`
	Tree          node              `json:"tree"`
	KeyNames      []string          `json:"key_names"`
	Document      json.RawMessage   `json:"document"`
	HopLimit      uint8             `json:"hop_limit"`
	ActiveKeys    []activeKey       `json:"active_keys"`
	FaultDelayMS  int               `json:"fault_delay_ms"`
	FaultStatus   int               `json:"fault_status"`
	FaultAnswer   string            `json:"fault_answer"`
	tokenKey      []byte
	userDataBytes []byte
	document      string // as EC2 lays it out
	modified      time.Time
}

// activeKey is a key that EC2 Instance Connect gave to a user; it is served until it expires, in Unix seconds.
type activeKey struct {
	User    string `json:"user"`
	Text    string `json:"text"`
	Expires int64  `json:"expires"`
}

// node is a directory when children is not nil, else a leaf.
type node struct {
	leaf     string
	children map[string]node
}

// UnmarshalJSON accepts an object as a directory and a string as a leaf; anything else is a mistake
// of the writer, and guessing how EC2 would print it would hide that.
func (n *node) UnmarshalJSON(data []byte) error {
	if len(data) > 0 && data[0] == '{' {
		n.children = map[string]node{}
		return json.Unmarshal(data, &n.children)
	}
	if string(data) == "null" {
		return errors.New("the tree holds null; leave the key out instead")
	}
	return json.Unmarshal(data, &n.leaf)
}

func parseMetadata(data []byte) (*metadata, error) {
	m := &metadata{}
	if err := json.Unmarshal(data, m); err != nil {
		return nil, err
	}
	if m.Version != schemaVersion {
		return nil, errors.New("unsupported version")
	}
	if m.HTTPTokens != "required" && m.HTTPTokens != "optional" {
		return nil, errors.New("http_tokens is neither required nor optional")
	}
	if m.HTTPEndpoint != "enabled" && m.HTTPEndpoint != "disabled" {
		return nil, errors.New("http_endpoint is neither enabled nor disabled")
	}
	var err error
	if m.tokenKey, err = hex.DecodeString(m.TokenKeyHex); err != nil {
		return nil, err
	}
	if len(m.tokenKey) < 16 {
		return nil, errors.New("token_key is shorter than 16 bytes")
	}
	if m.UserData != nil {
		if m.userDataBytes, err = base64.StdEncoding.DecodeString(*m.UserData); err != nil {
			return nil, err
		}
	}
	if m.HopLimit == 0 {
		m.HopLimit = defaultTTL
	}
	if m.FaultStatus != 0 && (m.FaultStatus < 400 || m.FaultStatus > 599) {
		return nil, errors.New("fault_status is not the status of an error")
	}
	switch m.FaultAnswer {
	case "", refused, truncated, garbage:
	default:
		return nil, errors.New("fault_answer is not refused, truncated or garbage")
	}
	if m.Tree.children == nil {
		return nil, errors.New("tree is missing")
	}
	if m.document, err = documentText(m.Document); err != nil {
		return nil, err
	}
	if m.InstanceTags && len(m.Tags) > 0 {
		instance := map[string]node{}
		for key, value := range m.Tags {
			instance[key] = node{leaf: value}
		}
		m.Tree.children["tags"] = node{children: map[string]node{"instance": {children: instance}}}
	}
	return m, nil
}

// documentText lays a flat JSON object out as EC2 does: a line per field, two spaces before it and one on each
// side of its colon.
func documentText(document json.RawMessage) (string, error) {
	if len(document) == 0 {
		return "", nil
	}
	var out bytes.Buffer
	if err := json.Indent(&out, document, "", "  "); err != nil {
		return "", err
	}
	lines := strings.Split(out.String(), "\n")
	for i, line := range lines {
		lines[i] = strings.Replace(line, `": `, `" : `, 1)
	}
	return strings.Join(lines, "\n"), nil
}

// metaData resolves the path below meta-data/ to the text EC2 would send for this version. A trailing slash makes
// no difference, on directories or leaves, as on current EC2 (which no longer redirects).
func (m *metadata) metaData(version string, path []string, now time.Time) (string, bool) {
	n := m.withActiveKeys(now)
	for i, name := range path {
		child, ok := n.children[name]
		if !ok || !exists(path[:i+1], version) {
			return "", false
		}
		n = child
	}
	if n.children == nil {
		return n.leaf, true
	}
	if len(path) == 1 && path[0] == "public-keys" {
		return m.publicKeys(n), true
	}
	text := listing(n, path, version)
	return text, text != "" // EC2 has no empty directories: 404
}

const managedKeys, activeKeys = "managed-ssh-keys", "active-keys"

// withActiveKeys is the tree with the keys that have not expired. The file's own tree is shared by all
// connections and stays as it is.
func (m *metadata) withActiveKeys(now time.Time) node {
	users := map[string]node{}
	for _, key := range m.ActiveKeys {
		if now.Unix() < key.Expires {
			users[key.User] = node{leaf: users[key.User].leaf + key.Text}
		}
	}
	if len(users) == 0 {
		return m.Tree
	}
	tree, managed := maps.Clone(m.Tree.children), maps.Clone(m.Tree.children[managedKeys].children)
	if managed == nil {
		managed = map[string]node{}
	}
	managed[activeKeys] = node{children: users}
	tree[managedKeys] = node{children: managed}
	return node{children: tree}
}

// listing is a directory's content in a version, one name per line, directories with a trailing slash, and like
// every answer of EC2 without a newline at the end.
func listing(n node, path []string, version string) string {
	names := make([]string, 0, len(n.children))
	for name, child := range n.children {
		if !exists(append(path[:len(path):len(path)], name), version) {
			continue
		}
		if child.children != nil {
			name += "/"
		}
		names = append(names, name)
	}
	slices.Sort(names)
	return strings.Join(names, "\n")
}

// publicKeys lists index=name, the one directory EC2 lists in a form of its own.
func (m *metadata) publicKeys(n node) string {
	lines := make([]string, 0, len(m.KeyNames))
	for i, name := range m.KeyNames {
		index := strconv.Itoa(i)
		if _, ok := n.children[index]; ok {
			lines = append(lines, index+"="+name)
		}
	}
	return strings.Join(lines, "\n")
}
