// Package sysfs reads the one-line files of /proc and /sys.
package sysfs

import (
	"os"
	"strings"
)

// ReadLine returns the first line of a file, without its newline.
func ReadLine(path string) (string, error) {
	text, err := os.ReadFile(path)
	line, _, _ := strings.Cut(string(text), "\n")
	return line, err
}
