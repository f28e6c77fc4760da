package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"syscall"

	"instantenv/internal/secrets"
)

const (
	reportVersion = 1
	// A forbidden text is searched for in raw bytes, where a short one occurs by chance.
	minForbidden = secrets.MinForbidden
	// Keeps the report readable when a rule matches everywhere.
	maxFindingsPerRule = 50
)

// finding is one thing that must not be in the image. It never holds the secret itself.
type finding struct {
	Rule   string `json:"rule"`
	Path   string `json:"path,omitempty"`   // in the image's root file system; absent for raw
	Detail string `json:"detail,omitempty"` // for people
	Reason string `json:"reason"`           // why it must not be there
	Where  string `json:"where"`            // "file", or "raw" for bytes of the device that no file has
	Offset *int64 `json:"offset,omitempty"` // of found bytes, from the start of the file or of the device

	fingerprint string // of key material, else empty
}

// report is what the audit prints.
type report struct {
	Version      int       `json:"version"`
	Device       string    `json:"device"`
	Filesystem   string    `json:"filesystem,omitempty"`
	Files        int       `json:"files_scanned"`
	BytesScanned int64     `json:"bytes_scanned"` // of the device
	Findings     []finding `json:"findings"`
	Dropped      int       `json:"findings_dropped"`    // beyond 50 of one rule
	PublicKeys   int       `json:"public_keys_ignored"` // places of private keys that packages ship
}

// addHit adds a finding by content; an empty path stands for bytes of the device that no file has.
func (r *report) addHit(h secrets.Hit, path string, offset int64) {
	where := "file"
	if path == "" {
		where = "raw"
	}
	r.Findings = append(r.Findings, finding{
		Rule: h.Rule, Path: path, Detail: h.Detail, Where: where, Offset: &offset, fingerprint: h.Fingerprint,
	})
}

// add adds a finding by path, mode or capability.
func (r *report) add(rule, path, detail string) {
	r.Findings = append(r.Findings, finding{Rule: rule, Path: path, Detail: detail, Where: "file"})
}

// settle sorts the findings, drops duplicates and public keys, and keeps at most maxFindingsPerRule of each rule.
func (r *report) settle(public map[string]bool) {
	counts := map[string]int{}
	kept := []finding{}
	slices.SortStableFunc(r.Findings, finding.compare)
	r.Findings = slices.CompactFunc(r.Findings, func(a, b finding) bool { return a.compare(b) == 0 })
	for _, f := range r.Findings {
		if public[f.fingerprint] {
			r.PublicKeys++
			continue
		}
		if counts[f.Where+f.Rule]++; counts[f.Where+f.Rule] > maxFindingsPerRule {
			r.Dropped++
			continue
		}
		f.Reason = reasons[f.Rule]
		kept = append(kept, f)
	}
	r.Findings = kept
}

func (f finding) compare(g finding) int {
	offset := func(f finding) int64 {
		if f.Offset == nil {
			return -1
		}
		return *f.Offset
	}
	return cmp.Or(strings.Compare(f.Where, g.Where), strings.Compare(f.Path, g.Path),
		strings.Compare(f.Rule, g.Rule), cmp.Compare(offset(f), offset(g)))
}

// texts collects a repeated flag.
type texts []string

func (t *texts) String() string { return strings.Join(*t, ",") }

func (t *texts) Set(value string) error {
	*t = append(*t, value)
	return nil
}

func runAudit(args []string, stdout io.Writer) (int, error) {
	var allowed, allowedModes, forbidden texts
	flags := flag.NewFlagSet("audit", flag.ContinueOnError)
	device := flags.String("device", "", "block device, or a regular file with a disk image")
	rawOnly := flags.Bool("raw-only", false, "do not mount: scan the bytes only, which needs no root")
	asJSON := flags.Bool("json", false, "print one JSON object")
	listRules := flags.Bool("rules", false, "print what is looked for and why, and do nothing else")
	flags.Var(&allowedModes, "allow-mode", "path that may have any mode or capability (setuid, world-writable, a device); /a/** is all below /a")
	flags.Var(&allowed, "allow-user", "account that may have a shell; when given, all other people's accounts are findings")
	flags.Var(&forbidden, "forbid", "text that no byte range of the device may hold")
	if err := parse(flags, args); err != nil {
		return exitError, err
	}
	if *listRules {
		return exitOK, printRules(stdout)
	}
	if *device == "" {
		return exitError, fmt.Errorf("%w: --device is needed", errUsage)
	}
	for _, text := range forbidden {
		if len(text) < minForbidden {
			return exitError, fmt.Errorf("%w: a --forbid text has fewer than %d bytes", errUsage, minForbidden)
		}
	}
	result, err := audit(*device, *rawOnly, secrets.NewMatcher(forbidden), pathRules(allowed), newModeRules(allowedModes))
	if err != nil {
		return exitError, err
	}
	if err := result.print(stdout, *asJSON); err != nil {
		return exitError, err
	}
	if len(result.Findings) > 0 {
		return exitFindings, nil
	}
	return exitOK, nil
}

func (r *report) print(out io.Writer, asJSON bool) error {
	if asJSON {
		return json.NewEncoder(out).Encode(r)
	}
	for _, f := range r.Findings {
		place := f.Path
		if f.Where == "raw" {
			place = fmt.Sprintf("byte %d of the device", *f.Offset)
		}
		fmt.Fprintf(out, "%s: %s: %s (%s)\n", f.Rule, place, f.Detail, f.Reason)
	}
	_, err := fmt.Fprintf(out, "%d findings (%d more not shown), %d files and %d bytes scanned\n",
		len(r.Findings), r.Dropped, r.Files, r.BytesScanned)
	return err
}

// scanned is the result of a scan of the device.
type scanned struct {
	hits  []secrets.Hit
	bytes int64
	err   error
}

// audit scans the device's bytes and, at the same time, walks its files; a hit in the bytes is then attributed to the
// file that has them. An error of either fails the audit, because half an audit proves nothing.
func audit(path string, rawOnly bool, matcher *secrets.Matcher, rules []pathRule, modes modeRules) (*report, error) {
	device, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer device.Close()
	result := &report{Version: reportVersion, Device: path}
	w := &walker{modes: modes, result: result}
	root := rootPartition{}
	if !rawOnly {
		if root, err = findRoot(device); err != nil {
			return nil, err
		}
		if w.scanner, err = secrets.NewScanner(matcher); err != nil {
			return nil, err
		}
		w.origin, result.Filesystem = root.offset, root.filesystem
	}
	raw := make(chan scanned, 1)
	go func() { raw <- scanDevice(path, matcher) }()

	conclude := func(directory string) error {
		found := <-raw
		result.BytesScanned = found.bytes
		for _, h := range found.hits {
			path, offset := w.layout.owner(h.Offset)
			result.addHit(h, path, offset)
		}
		public, err := publicKeys(directory, result.Findings)
		result.settle(public)
		return errors.Join(found.err, err)
	}
	if rawOnly {
		return result, conclude("")
	}
	done := make(chan error)
	go func() {
		done <- withMounted(device, root, func(directory string) error {
			keyFiles, err := keyFileRules(directory)
			if err != nil {
				return err
			}
			w.rules = newRuleIndex(slices.Concat(rules, keyFiles))
			if err := w.walk(directory); err != nil {
				return err
			}
			return conclude(directory)
		})
	}()
	return result, <-done
}

// scanners is how many read the device at once, each a part of it: machines that audit have two processors.
const scanners = 2

// scanDevice reads a block device with O_DIRECT: filling the page cache takes ten times as long as reading on a machine
// in software emulation, and evicts everything else.
func scanDevice(path string, matcher *secrets.Matcher) (found scanned) {
	info, err := os.Stat(path)
	if err != nil {
		return scanned{err: err}
	}
	flags := os.O_RDONLY
	if info.Mode().Type() == os.ModeDevice {
		flags |= syscall.O_DIRECT
	}
	device, err := os.OpenFile(path, flags, 0)
	if err != nil {
		return scanned{err: err}
	}
	defer device.Close()
	size, err := device.Seek(0, io.SeekEnd)
	if err != nil {
		return scanned{err: err}
	}
	parts := make(chan scanned, scanners)
	length := (size/scanners + secrets.PartAlignment - 1) / secrets.PartAlignment * secrets.PartAlignment
	for i := range int64(scanners) {
		start, end := min(size, i*length), min(size, (i+1)*length)
		go func() { parts <- scanPart(device, start, end, matcher) }()
	}
	for range scanners {
		part := <-parts
		found.hits = append(found.hits, part.hits...)
		found.bytes += part.bytes
		found.err = errors.Join(found.err, part.err)
	}
	return found
}

func scanPart(device io.ReaderAt, start, end int64, matcher *secrets.Matcher) (found scanned) {
	scanner, err := secrets.NewScanner(matcher)
	if err != nil {
		return scanned{err: err}
	}
	found.bytes, found.err = scanner.ScanPart(device, start, end, func(h secrets.Hit) { found.hits = append(found.hits, h) })
	return scanned{found.hits, found.bytes, errors.Join(found.err, scanner.Close())}
}
