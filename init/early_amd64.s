#include "textflag.h"

// Numbers of asm/unistd_64.h; linux/sched.h, asm-generic/fcntl.h, linux/fcntl.h, linux/mount.h, asm-generic/errno-base.h.
#define sys_close 3
#define sys_dup2 33
#define sys_getpid 39
#define sys_clone 56
#define sys_execve 59
#define sys_exit 60
#define sys_wait4 61
#define sys_fcntl 72
#define sys_setsid 112
#define sys_mount 165
#define sys_clock_gettime 228
#define sys_openat 257
#define sys_pipe2 293
#define vfork_flags 0x4111 // CLONE_VFORK | CLONE_VM | SIGCHLD
#define AT_FDCWD -100
#define O_CLOEXEC 0x80000
#define F_SETLEASE 1024
#define F_WRLCK 1
#define MS_NOSUID 2
#define proc_flags 14 // MS_NOSUID | MS_NODEV | MS_NOEXEC
#define EBUSY 16
#define CLOCK_BOOTTIME 7

// Each entry of earlyWords is a pointer and a length.
#define word(i) ·earlyWords+(i*16)(SB)

// The kernel leaves the stack pointer where the runtime's entry wants it, so it stays there: nothing is pushed. A system
// call keeps all registers but AX, CX and R11.
TEXT ·early(SB), NOSPLIT|NOFRAME, $0-0
	MOVL	$sys_getpid, AX
	SYSCALL
	CMPQ	AX, $1
	JNE	runtime

	MOVQ	word(0), DI
	MOVQ	word(1), SI
	MOVQ	word(0), DX
	MOVQ	$proc_flags, R10
	XORL	R8, R8
	MOVL	$sys_mount, AX
	SYSCALL
	CMPQ	AX, $0
	JEQ	devices
	CMPQ	AX, $-EBUSY
	JNE	runtime
devices:
	MOVQ	word(2), DI
	MOVQ	word(3), SI
	MOVQ	word(2), DX
	MOVQ	$MS_NOSUID, R10
	MOVQ	word(4), R8
	MOVL	$sys_mount, AX
	SYSCALL
	CMPQ	AX, $0
	JEQ	mounted
	CMPQ	AX, $-EBUSY
	JNE	runtime
mounted:
	MOVQ	$AT_FDCWD, DI
	MOVQ	word(5), SI
	MOVL	$O_CLOEXEC, DX
	MOVL	$sys_openat, AX
	SYSCALL
	CMPQ	AX, $0
	JLT	runtime
	MOVQ	AX, ·earlyLease(SB)
	CMPQ	AX, $3 // below: there is no console, and descriptors are not what they should be
	JLT	closeLease
	MOVQ	AX, DI
	MOVL	$F_SETLEASE, SI
	MOVL	$F_WRLCK, DX
	MOVL	$sys_fcntl, AX
	SYSCALL
	CMPQ	AX, $0
	JNE	closeLease
	LEAQ	·earlyOutput(SB), DI
	MOVL	$O_CLOEXEC, SI
	MOVL	$sys_pipe2, AX
	SYSCALL
	CMPQ	AX, $0
	JNE	closeLease

	MOVQ	word(7), AX
	MOVQ	AX, ·earlyArguments+0(SB)
	MOVQ	word(8), AX
	MOVQ	AX, ·earlyArguments+8(SB)
	MOVQ	word(9), AX
	MOVQ	AX, ·earlyArguments+16(SB)
	MOVQ	word(10), AX
	MOVQ	AX, ·earlyArguments+24(SB)
	MOVQ	word(11), AX
	MOVQ	AX, ·earlyArguments+32(SB)
	MOVQ	word(12), AX
	MOVQ	AX, ·earlyEnv+0(SB)

	// The child runs on our stack, which neither of us touches, and we go on when it is sshd or has ended.
	MOVL	$vfork_flags, DI
	XORL	SI, SI
	XORL	DX, DX
	XORL	R10, R10
	XORL	R8, R8
	MOVL	$sys_clone, AX
	SYSCALL
	CMPQ	AX, $0
	JEQ	child
	JLT	closeOutput
	MOVQ	AX, R12
	CMPQ	·earlyError(SB), $0
	JNE	reap
	MOVL	$CLOCK_BOOTTIME, DI
	LEAQ	·earlyAt(SB), SI
	MOVL	$sys_clock_gettime, AX
	SYSCALL
	MOVL	·earlyOutput+4(SB), DI
	MOVL	$sys_close, AX
	SYSCALL
	MOVQ	R12, ·earlyPID(SB)
	JMP	runtime

reap:
	MOVQ	R12, DI
	XORL	SI, SI
	XORL	DX, DX
	XORL	R10, R10
	MOVL	$sys_wait4, AX
	SYSCALL
closeOutput:
	MOVL	·earlyOutput+0(SB), DI
	MOVL	$sys_close, AX
	SYSCALL
	MOVL	·earlyOutput+4(SB), DI
	MOVL	$sys_close, AX
	SYSCALL
closeLease:
	MOVQ	·earlyLease(SB), DI
	MOVL	$sys_close, AX
	SYSCALL
runtime:
	JMP	_rt0_amd64_linux(SB)

child:
	MOVL	$sys_setsid, AX
	SYSCALL
	MOVQ	$AT_FDCWD, DI
	MOVQ	word(6), SI
	MOVL	$O_CLOEXEC, DX
	MOVL	$sys_openat, AX
	SYSCALL
	CMPQ	AX, $0
	JLT	failed
	MOVQ	AX, DI
	XORL	SI, SI
	MOVL	$sys_dup2, AX
	SYSCALL
	MOVL	·earlyOutput+4(SB), DI
	MOVL	$1, SI
	MOVL	$sys_dup2, AX
	SYSCALL
	MOVL	·earlyOutput+4(SB), DI
	MOVL	$2, SI
	MOVL	$sys_dup2, AX
	SYSCALL
	MOVQ	word(7), DI
	LEAQ	·earlyArguments(SB), SI
	LEAQ	·earlyEnv(SB), DX
	MOVL	$sys_execve, AX
	SYSCALL
failed:
	MOVQ	AX, ·earlyError(SB)
	MOVL	$1, DI
	MOVL	$sys_exit, AX
	SYSCALL
	JMP	failed
