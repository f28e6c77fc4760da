#include "textflag.h"

// Numbers of asm-generic/unistd.h; for the others see early_amd64.s, which this follows step by step.
#define sys_dup3 24
#define sys_fcntl 25
#define sys_mount 40
#define sys_openat 56
#define sys_close 57
#define sys_pipe2 59
#define sys_exit 93
#define sys_clock_gettime 113
#define sys_setsid 157
#define sys_getpid 172
#define sys_clone 220
#define sys_execve 221
#define sys_wait4 260
#define vfork_flags 0x4111
#define AT_FDCWD -100
#define O_CLOEXEC 0x80000
#define F_SETLEASE 1024
#define F_WRLCK 1
#define MS_NOSUID 2
#define proc_flags 14
#define EBUSY 16
#define CLOCK_BOOTTIME 7

#define word(i) ·earlyWords+(i*16)(SB)

// A system call keeps all registers but R0.
TEXT ·early(SB), NOSPLIT|NOFRAME, $0-0
	MOVD	$sys_getpid, R8
	SVC
	CMP	$1, R0
	BNE	runtime

	MOVD	word(0), R0
	MOVD	word(1), R1
	MOVD	word(0), R2
	MOVD	$proc_flags, R3
	MOVD	$0, R4
	MOVD	$sys_mount, R8
	SVC
	CMP	$0, R0
	BEQ	devices
	CMN	$EBUSY, R0
	BNE	runtime
devices:
	MOVD	word(2), R0
	MOVD	word(3), R1
	MOVD	word(2), R2
	MOVD	$MS_NOSUID, R3
	MOVD	word(4), R4
	MOVD	$sys_mount, R8
	SVC
	CMP	$0, R0
	BEQ	mounted
	CMN	$EBUSY, R0
	BNE	runtime
mounted:
	MOVD	$AT_FDCWD, R0
	MOVD	word(5), R1
	MOVD	$O_CLOEXEC, R2
	MOVD	$0, R3
	MOVD	$sys_openat, R8
	SVC
	CMP	$0, R0
	BLT	runtime
	MOVD	R0, ·earlyLease(SB)
	CMP	$3, R0
	BLT	closeLease
	MOVD	$F_SETLEASE, R1
	MOVD	$F_WRLCK, R2
	MOVD	$sys_fcntl, R8
	SVC
	CMP	$0, R0
	BNE	closeLease
	MOVD	$·earlyOutput(SB), R0
	MOVD	$O_CLOEXEC, R1
	MOVD	$sys_pipe2, R8
	SVC
	CMP	$0, R0
	BNE	closeLease

	MOVD	word(7), R0
	MOVD	R0, ·earlyArguments+0(SB)
	MOVD	word(8), R0
	MOVD	R0, ·earlyArguments+8(SB)
	MOVD	word(9), R0
	MOVD	R0, ·earlyArguments+16(SB)
	MOVD	word(10), R0
	MOVD	R0, ·earlyArguments+24(SB)
	MOVD	word(11), R0
	MOVD	R0, ·earlyArguments+32(SB)
	MOVD	word(12), R0
	MOVD	R0, ·earlyEnv+0(SB)

	MOVD	$vfork_flags, R0
	MOVD	$0, R1
	MOVD	$0, R2
	MOVD	$0, R3
	MOVD	$0, R4
	MOVD	$sys_clone, R8
	SVC
	CMP	$0, R0
	BEQ	child
	BLT	closeOutput
	MOVD	R0, R19
	MOVD	·earlyError(SB), R0
	CBNZ	R0, reap
	MOVD	$CLOCK_BOOTTIME, R0
	MOVD	$·earlyAt(SB), R1
	MOVD	$sys_clock_gettime, R8
	SVC
	MOVW	·earlyOutput+4(SB), R0
	MOVD	$sys_close, R8
	SVC
	MOVD	R19, ·earlyPID(SB)
	JMP	runtime

reap:
	MOVD	R19, R0
	MOVD	$0, R1
	MOVD	$0, R2
	MOVD	$0, R3
	MOVD	$sys_wait4, R8
	SVC
closeOutput:
	MOVW	·earlyOutput+0(SB), R0
	MOVD	$sys_close, R8
	SVC
	MOVW	·earlyOutput+4(SB), R0
	MOVD	$sys_close, R8
	SVC
closeLease:
	MOVD	·earlyLease(SB), R0
	MOVD	$sys_close, R8
	SVC
runtime:
	JMP	_rt0_arm64_linux(SB)

child:
	MOVD	$sys_setsid, R8
	SVC
	MOVD	$AT_FDCWD, R0
	MOVD	word(6), R1
	MOVD	$O_CLOEXEC, R2
	MOVD	$0, R3
	MOVD	$sys_openat, R8
	SVC
	CMP	$0, R0
	BLT	failed
	MOVD	$0, R1
	MOVD	$0, R2
	MOVD	$sys_dup3, R8
	SVC
	MOVW	·earlyOutput+4(SB), R0
	MOVD	$1, R1
	MOVD	$0, R2
	MOVD	$sys_dup3, R8
	SVC
	MOVW	·earlyOutput+4(SB), R0
	MOVD	$2, R1
	MOVD	$0, R2
	MOVD	$sys_dup3, R8
	SVC
	MOVD	word(7), R0
	MOVD	$·earlyArguments(SB), R1
	MOVD	$·earlyEnv(SB), R2
	MOVD	$sys_execve, R8
	SVC
failed:
	MOVD	R0, ·earlyError(SB)
	MOVD	$1, R0
	MOVD	$sys_exit, R8
	SVC
	JMP	failed
