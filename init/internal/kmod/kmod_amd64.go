package kmod

// sysFinitModule is finit_module(2); package syscall has no name for it on this architecture.
const sysFinitModule = 313
