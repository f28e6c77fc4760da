// Package paths names the directories that more than one package uses.
package paths

const (
	// Runtime is this program's own directory, in memory.
	Runtime = "/run/instant-init"
	// SSH has sshd's configuration and host keys.
	SSH = "/etc/ssh"
	// Console is the serial console that a cloud shows.
	Console = "/dev/console"
)
