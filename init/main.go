package main

import (
	"fmt"
	"io"
	"os"
	"strconv"
	"syscall"
	"time"

	"instantenv/init/internal/access"
	"instantenv/init/internal/boot"
	"instantenv/init/internal/config"
	"instantenv/init/internal/handover"
	"instantenv/init/internal/imds"
	"instantenv/init/internal/logging"
	"instantenv/init/internal/paths"
	"instantenv/init/internal/phases"
	"instantenv/init/internal/timeline"
	"instantenv/init/internal/volumes"
)

// version is stamped by the build (-ldflags "-X main.version=..."); without it there is none.
var version = "unknown"

func main() { os.Exit(run(os.Args[1:], os.Getpid(), os.Stdout, os.Stderr)) }

// run returns the exit status. With pid 1 it is the machine's init and ignores its arguments: the kernel passes the words
// of its command line that it does not know.
func run(args []string, pid int, stdout, stderr io.Writer) int {
	if pid == 1 {
		boot.Run(earlyStart())
	}
	if len(args) == 2 && args[0] == "login-keys" {
		return printLoginKeys(args[1], stdout, stderr)
	}
	if len(args) == 2 && args[0] == "grow" {
		return growVolume(args[1], stderr)
	}
	if len(args) >= 2 && len(args) <= 4 && (args[0] == "phase" || args[0] == "await") {
		return phase(phases.Recorded, paths.Console, args, stderr)
	}
	if len(args) != 1 {
		return usage(stderr)
	}
	switch args[0] {
	case "grow":
		return growVolume("/", stderr)
	case "key-agent":
		return keyAgent(&logging.Logger{Journal: stderr})
	case "hand-over":
		return handOver(os.Stdin, stdout, &logging.Logger{Journal: stderr})
	case "timeline":
		return printTimeline(timeline.File, stdout, stderr)
	case "--version":
		fmt.Fprintln(stdout, "instant-init", version)
		return 0
	}
	return usage(stderr)
}

func usage(stderr io.Writer) int {
	fmt.Fprintln(stderr, "instant-init is the first process of a machine: the kernel starts it (init=/usr/sbin/instant-init).\n"+
		"By hand: instant-init key-agent | hand-over | login-keys USER | timeline | grow [MOUNT POINT] |\n"+
		"phase NAME running|done|failed [REASON] | await NAME [SECONDS] | --version")
	return 2
}

// printLoginKeys looks up the login user in the configuration and prints the keys of package access.
func printLoginKeys(user string, stdout, stderr io.Writer) int {
	settings, err := config.Load(config.File)
	if err != nil {
		fmt.Fprintln(stderr, "instant-init:", err)
		return 1
	}
	return access.LoginKeys(user, settings.LoginUser, access.MemoryKeys, handover.File, imds.New(imds.Default), stdout, stderr)
}

// awaitLimit is a little less than systemd gives a service to start.
const awaitLimit = 80

// phase records a phase of the machine's, and puts a failure on the console, or waits for one.
func phase(book phases.Book, consoleFile string, args []string, stderr io.Writer) int {
	args = append(args, "", "")
	var err error
	if args[0] == "await" {
		seconds, invalid := strconv.Atoi(args[2])
		if args[2] == "" {
			seconds, invalid = awaitLimit, nil
		}
		if invalid != nil || args[3] != "" {
			return usage(stderr)
		}
		err = book.Await(args[1], time.Duration(seconds)*time.Second)
	} else if err = book.Set(args[1], args[2], args[3]); err == nil && args[2] == phases.Failed {
		log := &logging.Logger{Journal: stderr}
		if console, absent := os.OpenFile(consoleFile, os.O_WRONLY|syscall.O_NOCTTY, 0); absent == nil {
			log.Console = console // a person reads it there when nobody gets in
		}
		log.Consolef("%s failed: %s", args[1], args[3])
	}
	if err != nil {
		fmt.Fprintln(stderr, "instant-init:", err)
		return 1
	}
	return 0
}

func growVolume(target string, stderr io.Writer) int {
	log := &logging.Logger{Journal: stderr}
	if _, err := volumes.Grow(target, nil, log); err != nil {
		log.Consolef("%v", err)
		return 1
	}
	return 0
}

func printTimeline(path string, stdout, stderr io.Writer) int {
	text, err := os.ReadFile(path)
	if err != nil {
		fmt.Fprintln(stderr, "instant-init: no timeline:", err)
		return 1
	}
	if _, err := stdout.Write(text); err != nil {
		return 1
	}
	return 0
}
