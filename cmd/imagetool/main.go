// Command imagetool makes, audits and compares disk images. A bake runs it on its builder, where it needs no program of
// the distribution.
//
//	imagetool uki --stub S --kernel K --cmdline TEXT [--os-release F] [--initrd F] --output O
//	imagetool audit --device /dev/nvme1n1 [--raw-only] [--allow-user NAME]... [--allow-mode PATH]... [--forbid TEXT]... [--json]
//	imagetool audit --rules
//	imagetool compare --a DISK --b DISK [--json]
//	imagetool compare --expected
//
// uki makes a unified kernel image: systemd's EFI stub with the kernel and its command line appended
// as PE sections. audit looks for what must not be in an image, in the root file system and in every
// byte of the device, free space included. compare lists the differences between two images that a machine
// made of them could see.
//
// Exit status: 0 done, or nothing found; 1 the audit or the comparison found something; 2 error, with one line on
// standard error.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
)

const (
	exitOK       = 0
	exitFindings = 1
	exitError    = 2
)

const usage = `usage: imagetool uki --stub FILE --kernel FILE --cmdline TEXT [--os-release FILE] [--initrd FILE] --output FILE
       imagetool audit --device FILE [--raw-only] [--allow-user NAME]... [--allow-mode PATH]... [--forbid TEXT]... [--json]
       imagetool audit --rules
       imagetool compare --a FILE --b FILE [--json]
       imagetool compare --expected
`

func main() {
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

func run(args []string, stdout, stderr io.Writer) int {
	verbs := map[string]func([]string, io.Writer) (int, error){"uki": runUKI, "audit": runAudit, "compare": runCompare}
	if len(args) == 0 || verbs[args[0]] == nil {
		fmt.Fprint(stderr, usage)
		return exitError
	}
	status, err := verbs[args[0]](args[1:], stdout)
	if err != nil {
		fmt.Fprintf(stderr, "imagetool %s: %v\n", args[0], err)
		if errors.Is(err, errUsage) {
			fmt.Fprint(stderr, usage)
		}
		return exitError
	}
	return status
}

var errUsage = errors.New("wrong command line")

// parse reports flag errors through errUsage, and rejects what is left over.
func parse(flags *flag.FlagSet, args []string) error {
	flags.SetOutput(io.Discard)
	if err := flags.Parse(args); err != nil {
		return fmt.Errorf("%w: %w", errUsage, err)
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("%w: unexpected %q", errUsage, flags.Arg(0))
	}
	return nil
}
