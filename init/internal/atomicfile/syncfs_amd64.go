package atomicfile

// sysSyncfs is syncfs(2); package syscall has no name for it on this architecture.
const sysSyncfs = 306
