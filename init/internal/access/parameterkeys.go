package access

import (
	"fmt"
	"io"
	"os"

	"instantenv/init/internal/sshkey"
)

// SSMProgram makes the request that needs TLS; images have it if their recipe sets ssm_keys.
const SSMProgram = "/usr/sbin/instant-ssm"

// parameterLimit is more than a parameter can hold.
const parameterLimit = 64 << 10

// A Runner runs a program to its end, with its output going to a file. It fails if the program cannot start, or ends with
// a status other than 0.
type Runner func(argv []string, stdout *os.File) error

// AdmitParameter installs the keys in an SSM parameter. It reports failures on the console.
func (a *Admission) AdmitParameter(program, parameter string, run Runner) {
	text, err := outputOf(run, []string{program, parameter})
	if err == nil {
		var keys []sshkey.PublicKey
		if keys, err = sshkey.ParsePublicKeys(text); err == nil {
			err = a.admit(keys)
		}
	}
	if err != nil {
		a.log.Consolef("SSH keys of parameter %s: %v", parameter, err)
	}
}

func outputOf(run Runner, argv []string) (string, error) {
	reader, writer, err := os.Pipe()
	if err != nil {
		return "", err
	}
	defer reader.Close()
	text := make(chan string, 1)
	go func() {
		output, _ := io.ReadAll(io.LimitReader(reader, parameterLimit)) // the status tells whether it is whole
		text <- string(output)
		_, _ = io.Copy(io.Discard, reader)
	}()
	err = run(argv, writer)
	writer.Close()
	return <-text, err
}

// RunChild is the Runner of every process but process 1, which may not wait for a child itself.
func RunChild(argv []string, stdout *os.File) error {
	process, err := os.StartProcess(argv[0], argv, &os.ProcAttr{Files: []*os.File{nil, stdout, os.Stderr}})
	if err != nil {
		return err
	}
	state, err := process.Wait()
	if err == nil && !state.Success() {
		err = fmt.Errorf("%s: %s", argv[0], state)
	}
	return err
}
