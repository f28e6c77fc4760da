// Package secrets finds credentials in a stream of bytes, such as a disk: tokens, keys, and values that their name calls a
// secret, in plain text, UTF-16, base64, with escapes, and keys in binary form. It reads each byte once and holds one window.
package secrets

import (
	"fmt"
	"io"
	"syscall"
)

// LookBehind and LookAhead are what a rule may look at around its needle. A header and its body, or a key id and its
// secret, lie well within this.
const (
	LookBehind = 1 << 10
	LookAhead  = 8 << 10
)

const (
	// Large reads: of the time to read a device in a virtual machine, most is spent per request.
	chunkSize = 4 << 20
	// What is carried from one chunk to the next lies before it, so that chunks are always read to the
	// same address, a multiple of the page size as O_DIRECT wants it.
	carrySize = 12 << 10
)

// Hit is a match: of which rule, for people what it is, and a fingerprint by which the same secret is known elsewhere.
type Hit struct {
	Rule, Detail, Fingerprint string
	Offset                    int64
}

// Scanner reads streams; it owns the buffer, so each goroutine needs one of its own.
type Scanner struct {
	matcher *Matcher
	buffer  []byte
}

// NewScanner maps its buffer, for the alignment; Close unmaps it.
func NewScanner(m *Matcher) (*Scanner, error) {
	buffer, err := syscall.Mmap(-1, 0, carrySize+chunkSize, syscall.PROT_READ|syscall.PROT_WRITE,
		syscall.MAP_PRIVATE|syscall.MAP_ANON)
	if err != nil {
		return nil, fmt.Errorf("buffer: %w", err)
	}
	return &Scanner{m, buffer}, nil
}

// Close gives the buffer back.
func (s *Scanner) Close() error { return syscall.Munmap(s.buffer) }

// Scan reads to the end and reports each match once, at the offset where its pattern begins. It
// returns the number of bytes read.
func (s *Scanner) Scan(in io.Reader, report func(Hit)) (int64, error) {
	var total int64
	carry := 0 // bytes kept from the chunk before
	from := 0  // where in the window the search goes on
	for {
		n, err := io.ReadFull(in, s.buffer[carrySize:])
		last := err == io.EOF || err == io.ErrUnexpectedEOF
		if err != nil && !last {
			return total, err
		}
		window := s.buffer[carrySize-carry : carrySize+n]
		base := total - int64(carry)
		total += int64(n)
		to := len(window)
		if !last {
			to -= LookAhead
		}
		shifted := func(h Hit) {
			h.Offset += base
			report(h)
		}
		s.matcher.search(window, from, to, 0, shifted)
		// The carry and the chunk are multiples of a block, so that blocks begin where the window says.
		searchBlocks(window, from, to, shifted)
		if last {
			return total, nil
		}
		carry = LookBehind + LookAhead
		from = LookBehind
		copy(s.buffer[carrySize-carry:carrySize], window[len(window)-carry:])
	}
}

// PartAlignment is of what the offsets of parts are multiples, as O_DIRECT wants it.
const PartAlignment = 4 << 10

// ScanPart reads a part of a device, [start, end), and reports what begins in it; what it is judged by may lie beside the
// part. It returns how much of the part was there to read.
func (s *Scanner) ScanPart(device io.ReaderAt, start, end int64, report func(Hit)) (int64, error) {
	first := max(0, start-PartAlignment)
	const after = (LookAhead + PartAlignment - 1) / PartAlignment * PartAlignment
	total, err := s.Scan(io.NewSectionReader(device, first, end+after-first), func(h Hit) {
		h.Offset += first
		if h.Offset >= start && h.Offset < end {
			report(h)
		}
	})
	return max(0, min(first+total, end)-start), err
}
