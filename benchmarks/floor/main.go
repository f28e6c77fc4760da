// Floor is the least that a PID 1 can be: it prints a line. What a machine takes until then is what no init can save.
package main

import "syscall"

func main() {
	print("floor\n")
	for {
		_ = syscall.Pause()
	}
}
