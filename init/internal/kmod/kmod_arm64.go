package kmod

import "syscall"

const sysFinitModule = syscall.SYS_FINIT_MODULE
