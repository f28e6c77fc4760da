package main

import (
	"fmt"
	"io"
	"os"

	"instantenv/init/internal/sshkey"
)

// ssmProgram asks for what needs TLS; it is there in images of recipes that say ssm_keys.
const ssmProgram = "/usr/sbin/instant-ssm"

// parameterLimit is more than a parameter can hold.
const parameterLimit = 64 << 10

// A runner runs a program to its end, with its output going to a file. An error is one of the start, or a status.
type runner func(argv []string, stdout *os.File) error

// admitParameter lets in whoever has a key in an SSM parameter. It says on the console what keeps it from that.
func (a *admission) admitParameter(program, parameter string, run runner) {
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

func outputOf(run runner, argv []string) (string, error) {
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

// run is the runner of process 1, where nobody else may wait for a child. Errors go to the console.
func (m *machine) run(argv []string, stdout *os.File) error {
	process, err := m.processes.start(argv, []string{searchPath}, []uintptr{0, stdout.Fd(), 2}, nil)
	if err != nil {
		return err
	}
	if status := <-process.exit; status != 0 {
		return fmt.Errorf("%s ended: %s", argv[0], describe(status))
	}
	return nil
}

// runChild is the runner of any other process.
func runChild(argv []string, stdout *os.File) error {
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
