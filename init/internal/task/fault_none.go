//go:build !faults

package task

// injectFault does nothing: only test builds can be made to fail.
func injectFault(string) {}
