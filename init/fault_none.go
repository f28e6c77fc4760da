//go:build !faults

package main

// injectFault does nothing: only test builds can be made to fail.
func injectFault(string) {}
